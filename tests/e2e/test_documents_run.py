# SPDX-License-Identifier: Apache-2.0
"""The commands that the documents show are run, in their order, as a reader would."""

import os
import re
import subprocess

import pytest
from jobs import free_port
from test_readme import COMMANDS, ROOT

pytestmark = pytest.mark.e2e
NOT_HERE = {
    "python3 -m venv": "installs; the first and the last command of a forge's workflow do",
    "pip install": "installs",
    "python -m pytest": "tests",
    "bash pretrain_gpt.sh": "test_first_run.py",
    "msrun --worker_num 4 --local_worker_num 2 --master_addr 10.0.0.1": "two hosts: test_two_hosts",
    "WAIT=1 bash scripts/run_distribute_single_node.sh": "test_front_doors.py",
    "python -m mindspeed_ms.toolkit.data.create_lm_data": "the reader's text: test_create_lm_data",
    "export MINDSPEED_MS_DEVICE_TARGET": "a setting, which tests have anyway",
    "python tools/pipeline_balance.py --init measured.yaml": "the reader's measurement",
    "python run_mindformer.py --config configs/gpt2/run_gpt2.yaml": "test_front_doors.py",
    "mindspeed-ms parity --log megatron.log": "the reader's log: test_parity_log.py",
    "python -m mindspeed_ms.toolkit.serve": "goes on until it is stopped: test_server.py",
    "mpiexec -n 2 python -m mindspeed_ms.toolkit.serve": "the same: test_serve_layouts.py",
    "python benchmarks/serve_load.py": "needs a server that runs: test_server_load.py",
    "torchrun --nproc_per_node 2 tools/run_text": "goes on, too: test_serve_megatron.py",
    "curl -X PUT": "needs a server that runs: test_serve_megatron.py",
}
"""Beginning of a command -> why, or where, it is not run here."""
QUICK = ("configuration.md",)
"""Run by default; each of the others takes half a minute to minutes."""
FIRST_RUN = (
    "python pretrain_gpt.py --yaml configs/austen_gpt.yaml --tensor-model-parallel-size 1 "
    "--train-iters 12 --lr-warmup-iters 2 --save "
)
"""Makes the folder that a document takes from another."""
BEFORE = {
    "README.md": FIRST_RUN + "output/first_run",
    "getting_started.md": FIRST_RUN + "output/first_run",
    "generation.md": FIRST_RUN + "out",
    "watching.md": FIRST_RUN + "output/other",
}


def _is_run(command):
    return not command.startswith(tuple(NOT_HERE))


def _cases():
    for document in dict.fromkeys(name for name, _ in COMMANDS):
        commands = [command for name, command in COMMANDS if name == document and _is_run(command)]
        if commands:
            marks = () if document in QUICK else (pytest.mark.slow,)
            yield pytest.param(document, commands, id=document.removesuffix(".md"), marks=marks)


@pytest.fixture
def folder(tmp_path):
    """A folder as a checkout, in which commands may write."""
    for name in (
        "configs",
        "data",
        "docs",
        "tools",
        "scripts",
        "examples",
        "mindspeed_ms",
        "tests",
    ):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("pretrain_gpt.py", "pretrain_gpt.sh", "run_mindformer.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def _run(command, folder):
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HOME": str(folder),
        },
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.mark.parametrize(("document", "commands"), list(_cases()))
def test_commands_of_a_document_run(document, commands, folder):
    if document in BEFORE:
        _run(BEFORE[document], folder)
    exports = ""
    for command in commands:
        if command.startswith("export "):
            exports += f"{command}\n"
            continue
        if command.startswith("msrun"):
            command = command.replace("msrun ", f"msrun --master_port {free_port()} ", 1)
        shown = _run(exports + command, folder)
        assert "Traceback" not in shown, command
        assert "not restored" not in shown or "evaluate" in command, command  # of weights alone


def test_what_is_not_run_is_in_the_documents():
    for beginning in NOT_HERE:
        assert any(command.startswith(beginning) for _, command in COMMANDS), beginning


@pytest.mark.slow
def test_the_example_of_a_resumed_run_goes_on_as_planned(folder):
    first, second = [command for name, command in COMMANDS if name == "checkpoints.md"][:2]
    _run(first, folder)
    shown = _run(second, folder)
    rates = [float(rate) for rate in re.findall(r"learning rate: (\S+) \|", shown)]
    losses = [float(loss) for loss in re.findall(r"lm loss: (\S+) \|", shown)]
    assert len(rates) == 20 and "iteration       21/      40" in shown
    assert rates[0] > 20 * rates[-1], "the rate is that of the middle of the schedule"
    assert sum(losses[-5:]) < sum(losses[:5]), "it learns"
