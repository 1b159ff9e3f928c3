# SPDX-License-Identifier: Apache-2.0
"""Each example does what it says."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from jobs import free_port
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.sh"))
LOSS = re.compile(r"iteration +\d+/ +\d+ \|.* lm loss: (\S+) \|")
pytestmark = pytest.mark.e2e


def _run(*words, status=0):
    done = subprocess.run(
        ["bash", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def _losses(shown):
    return [float(loss) for loss in LOSS.findall(shown)]


def test_every_example_is_described_and_run_here():
    described = (ROOT / "examples" / "README.md").read_text("utf-8")
    here = Path(__file__).read_text("utf-8")
    doors = (ROOT / "tests" / "e2e" / "test_front_doors.py").read_text("utf-8")
    for path in EXAMPLES:
        assert f"({path.name})" in described
        is_through_another = path.name == "megatron_llama.sh"
        assert f"examples/{path.name}" in here + doors or is_through_another


def test_what_is_missing_is_told_in_one_line():
    for name in ("own_text", "continue_from_hugging_face", "convert"):
        shown = _run(f"examples/{name}.sh", status=2)
        assert shown.startswith(f"Usage: bash examples/{name}.sh ") and shown.count("\n") == 1


def test_plan_a_cluster():
    shown = _run("examples/plan_a_cluster.sh", 64, 32)
    assert shown.count("(6.738 billion)") == 2
    found = re.findall(r"^ +\d+\. ([\d.]+) s, .* ([\d.]+) GiB: --tensor-model", shown, re.M)
    times = [float(time) for time, _ in found]
    assert len(times) == 10 and times == sorted(times)
    assert all(float(memory) <= 32 for _, memory in found)


@pytest.mark.slow
def test_bring_a_megatron_script():
    shown = _run("examples/bring_a_megatron_script.sh")
    losses = _losses(shown)
    assert len(losses) == 2 and all(4.0 < loss < 7.0 for loss in losses)
    assert "(6.493 billion)" in shown, "the plan is that of the whole model"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A few iterations of the first run's model, on one rank."""
    folder = tmp_path_factory.mktemp("first") / "run"
    words = "--yaml configs/austen_gpt.yaml --tensor-model-parallel-size 1 --train-iters 12"
    command = f"python pretrain_gpt.py {words} --save {folder} --lr-warmup-iters 2"
    _run("-c", command)
    return folder


@pytest.mark.slow
def test_convert(run_folder, tmp_path):
    shown = _run("examples/convert.sh", run_folder, tmp_path / "out")
    assert shown.count("verified: logits") == 4
    assert re.search(r"^equal: \d+ tensors$", shown, re.M)
    weights = load_file(next((tmp_path / "out" / "hugging_face").glob("*.safetensors")))
    assert weights["model.embed_tokens.weight"].shape == (2048, 128)


@pytest.mark.slow
def test_continue_from_hugging_face(run_folder, tmp_path):
    words = f"python tools/convert_ckpt convert {run_folder} {tmp_path}/hub --to huggingface"
    _run("-c", words)
    shown = _run("examples/continue_from_hugging_face.sh", tmp_path / "hub", tmp_path / "out")
    losses = _losses(shown)
    assert len(losses) == 20 and losses[0] < 6.8, "the weights were taken: new ones begin at 7.6"
    before = load_file(next((tmp_path / "hub").glob("*.safetensors")))
    after = load_file(next((tmp_path / "out" / "for_hugging_face").glob("*.safetensors")))
    assert before.keys() == after.keys()
    moved = [np.abs(after[name] - before[name]).max() for name in before]
    assert 0 < max(moved) < 0.1


@pytest.mark.slow
def test_own_text(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    text = (ROOT / "data/austen/text/persuasion.txt").read_text("utf-8")
    (texts / "a.txt").write_text(text[:200_000], "utf-8")
    (texts / "b.txt").write_text(text[200_000:], "utf-8")
    out = tmp_path / "out"
    shown = _run("examples/own_text.sh", texts, out, "--train-iters", 30, "--lr-warmup-iters", 3)
    losses = _losses(shown)
    assert len(losses) == 30 and losses[0] > 7.4 and losses[-1] < 6.4
    assert len((out / "log.csv").read_text("utf-8").splitlines()) == 31
    assert (out / "run" / "report.html").stat().st_size > 1e6
    assert shown.rstrip().splitlines()[-1], "the model writes something"
