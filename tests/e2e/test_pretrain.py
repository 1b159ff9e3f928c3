# SPDX-License-Identifier: Apache-2.0
"""``pretrain_gpt.py`` as a user starts it: it trains, and it refuses bad input in one line."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
TINY = ROOT / "data" / "tiny"
BASE = ["--yaml", "configs/tiny_gpt.yaml", "--tensor-model-parallel-size", "1"]
LINE = re.compile(r"iteration +(\d+)/ +\d+ \|.* lm loss: (\S+) \|")


def _run(*flags, script=ROOT / "pretrain_gpt.py", status=0):
    result = subprocess.run(
        [sys.executable, str(script), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode == 0) == (status == 0), result.stdout[-3000:] + result.stderr[-3000:]
    return result


def test_the_loss_falls_on_the_shipped_corpus(tmp_path):
    result = _run(
        *("--yaml", "configs/austen_gpt.yaml", "--tensor-model-parallel-size", "1"),
        *("--train-iters", "40", "--data-cache-path", str(tmp_path), "--save", str(tmp_path)),
    )
    losses = [float(loss) for _, loss in LINE.findall(result.stdout)]
    assert len(losses) == 40
    assert losses[0] > 7.5 and np.mean(losses[-5:]) < 6.0
    assert "validation loss at iteration 40 on validation set" in result.stdout
    assert "ops: " in result.stdout and "using world size: 1" in result.stdout


def test_the_guide_style_line(tmp_path):
    result = _run(
        *BASE,
        *("--train-iters", "3", "--lr-warmup-iters", "0", "--eval-iters", "0"),
        *("--log-style", "guide", "--data-cache-path", str(tmp_path)),
    )
    lines = re.findall(
        r"^INFO - Epoch: 0, Step: (\d+), Loss: \d+\.\d{16}, Time", result.stdout, re.M
    )
    assert lines == ["1", "2", "3"]


def _broken(tmp_path, change):
    prefix = tmp_path / "text_document"
    for suffix in (".bin", ".idx"):
        shutil.copy(TINY / f"tiny_text_document{suffix}", f"{prefix}{suffix}")
    change(prefix)
    return ["--data-path", str(prefix), "--data-cache-path", str(tmp_path)]


def _truncate(prefix):
    path = Path(f"{prefix}.bin")
    path.write_bytes(path.read_bytes()[:-10])


def _foreign(prefix):
    Path(f"{prefix}.idx").write_bytes(b"PK\x03\x04 this is a zip file" * 10)


def _beyond_the_vocabulary(prefix):
    with IndexedDatasetBuilder(f"{prefix}.bin", np.int32) as builder:
        builder.add_document([1, 2, 70000] * 500, [1500])
        builder.finalize(f"{prefix}.idx")


BAD = {
    "heads": (["--num-attention-heads", "3"], "num_attention_heads"),
    "batch": (["--global-batch-size", "7"], "global"),
    "world": (["--tensor-model-parallel-size", "2"], "world size"),
    "flag": (["--hiden-size", "64"], "--hidden-size"),
    "abbreviation": (["--train-iter", "3"], "--train-iters"),
    "value": (["--train-iters", "many"], "--train-iters"),
    "yaml": (["--yaml", "configs/absent.yaml"], "absent.yaml"),
    "data": (["--data-path", "nowhere/text_document"], "nowhere/text_document"),
    "tokenizer": (["--tokenizer-model", "nowhere.model"], "nowhere.model"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    flags, part = BAD[name]
    _assert_one_line(
        _run(*BASE, "--train-iters", "2", "--lr-warmup-iters", "0", *flags, status=2), part
    )


@pytest.mark.parametrize(
    ("change", "part"),
    [(_truncate, ".bin"), (_foreign, ".idx"), (_beyond_the_vocabulary, "70000")],
    ids=["truncated", "foreign", "vocabulary"],
)
def test_bad_token_files_are_one_line(tmp_path, change, part):
    flags = _broken(tmp_path, change)
    _assert_one_line(
        _run(*BASE, "--train-iters", "2", "--lr-warmup-iters", "0", *flags, status=2), part
    )


def test_unknown_yaml_keys_name_the_nearest(tmp_path):
    text = (ROOT / "configs" / "tiny_gpt.yaml").read_text(encoding="utf-8")
    path = tmp_path / "typo.yaml"
    path.write_text(text.replace("hidden_size:", "hiden_size:"), encoding="utf-8")
    _assert_one_line(_run("--yaml", str(path), status=2), "hidden_size")


def _assert_one_line(result, part):
    assert "Traceback" not in result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1 and part in lines[0], result.stderr


@pytest.mark.slow
def test_a_run_saves_before_its_time_is_over(tmp_path):
    started = time.monotonic()
    result = _run(
        *BASE,
        *("--train-iters", "1000000", "--lr-decay-iters", "1000", "--eval-iters", "0"),
        *("--save", str(tmp_path / "a"), "--save-interval", "1000000"),
        *("--exit-duration-in-mins", "1", "--data-cache-path", str(tmp_path / "cache")),
    )
    assert 55.0 < time.monotonic() - started < 120.0
    last = int(LINE.findall(result.stdout)[-1][0])
    assert re.search(r"exiting program after 1\.\d+ minutes", result.stdout)
    assert (tmp_path / "a" / f"iter_{last:07d}" / "index.json").is_file()
    again = _run(
        *BASE,
        *("--train-iters", str(last + 1), "--lr-decay-iters", "1000", "--eval-iters", "0"),
        *("--load", str(tmp_path / "a"), "--data-cache-path", str(tmp_path / "cache")),
    )
    assert [int(number) for number, _ in LINE.findall(again.stdout)] == [last + 1]
