# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself on a terminal, at its start and at its end."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_ms.engine.log_lines import SHORT_WIDTH, IntervalReport, short_line
from mindspeed_ms.training import initialize
from mindspeed_ms.training.arguments import parse_args

ROOT = Path(__file__).parents[3]
SIZES = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 16 --mock-data "
    "--max-position-embeddings 16 --micro-batch-size 2 --padded-vocab-size 128 --lr 1e-3 "
    "--train-iters 4 --eval-iters 0 --log-interval 1"
).split()


def report(**changes):
    values = {
        "iteration": 12,
        "train_iters": 1000,
        "consumed_samples": 96,
        "seconds_per_iteration": 0.5,
        "learning_rate": 1e-4,
        "global_batch_size": 8,
        "losses": {"lm loss": 2.5},
        "loss_scale": 1.0,
        "grad_norm": 1.25,
        "num_zeros": None,
        "params_norm": None,
        "tflops_per_rank": None,
        "skipped_iterations": 0,
        "nan_iterations": 0,
        "epoch": 0,
        "step_in_epoch": 12,
    }
    return IntervalReport(**(values | changes))


def test_the_short_line_has_speed_and_time_left():
    assert short_line(report(), 64) == (
        "  12/1000 | lm loss 2.5000 | lr 1.00e-04 | grad norm 1.250 | 1,024 tokens/s | 08:14 left"
    )
    assert short_line(report(iteration=1000), 64).endswith("| 00:00 left")
    assert "2d 17:30:00 left" in short_line(report(train_iters=471_612), 64)
    assert short_line(report(skipped_iterations=2, nan_iterations=1), 64).endswith(
        "| 2 skipped | 1 NaN"
    )
    assert "lm loss nan" in short_line(report(losses={}), 64)


def test_the_short_line_fits():
    many = {"lm loss": 2.5, **{f"mtp_{index} loss": 3.0 for index in range(9)}}
    line = short_line(report(losses=many), 4096)
    assert len(line) <= SHORT_WIDTH and "mtp_0 loss 3.0000" in line and "mtp_8" not in line
    line = short_line(report(iteration=10**7, train_iters=10**8, losses=many), 4096)
    assert len(line) <= SHORT_WIDTH


@pytest.mark.parametrize(
    ("words", "is_terminal", "expected"),
    [
        ([], True, "short"),
        ([], False, "megatron"),
        (["--log-style", "megatron"], True, "megatron"),
        (["--log-style", "short"], False, "short"),
        (["--yaml", "tiny_gpt"], True, "short"),
        (["--yaml", "tiny_gpt"], False, None),
        (["--yaml", "tiny_gpt", "--log-style", "guide"], True, "guide"),
    ],
)
def test_who_reads_decides_the_line(words, is_terminal, expected, monkeypatch):
    args = parse_args(words if "--yaml" in words else [*SIZES, *words])
    monkeypatch.setattr(initialize.sys.stdout, "isatty", lambda: is_terminal, raising=False)
    initialize._choose_log_line(args)
    assert args.log_style == expected


def on_terminal(words, folder):
    """What a terminal shows of a command."""
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "pretrain_gpt.py"), *words],
        stdout=inner,
        stderr=inner,
        stdin=subprocess.DEVNULL,
        cwd=folder,
    )
    os.close(inner)
    shown = b""
    while True:
        try:
            part = os.read(outer, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(outer)
    assert process.wait(60) == 0, shown.decode()
    return [line.strip() for line in re.split(r"[\r\n]+|\x1b\[[A-Z]", shown.decode())]


def test_a_run_on_a_terminal(tmp_path):
    save = ["--save", "kept", "--save-interval", "3", "--print-args", "none"]
    lines = [line for line in on_terminal([*SIZES, *save], tmp_path) if line.strip()]
    steps = [line for line in lines if re.match(r"\d/4 \| lm loss ", line)]
    assert len(steps) == 4 and all("tokens/s" in line and " left" in line for line in steps)
    assert max(map(len, steps)) <= SHORT_WIDTH
    assert "checkpoints: in kept, every 3 iterations and at the end" in lines
    assert any(
        re.match(r"memory: the fullest rank needs .* by the plan; .* left$", x) for x in lines
    )
    assert lines[-1] == "the model is saved: iteration 4 in kept"


def test_a_run_that_keeps_nothing_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "pretrain_gpt.py"), *SIZES],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("the model is not saved: no folder was given")
    assert "checkpoints: none" in lines
