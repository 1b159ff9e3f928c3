# SPDX-License-Identifier: Apache-2.0
"""``--deterministic-mode``: equal bits for any threads on CPU, MindSpore's switch on Ascend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_ms.backend import ascend_device
from mindspeed_ms.backend.ascend_device import AscendDevice
from mindspeed_ms.backend.cpu_device import CpuDevice

ROOT = Path(__file__).parents[3]
WORDS = (
    "--num-layers 2 --hidden-size 192 --num-attention-heads 4 --seq-length 96 --train-iters 3 "
    "--max-position-embeddings 96 --micro-batch-size 3 --padded-vocab-size 1000 --lr 1e-3 "
    "--mock-data --split 1,0,0 --eval-iters 0 --print-args none --deterministic-mode"
).split()
SCRIPT = """
import hashlib, sys
sys.argv = ["pretrain_gpt.py", *sys.argv[1:]]
from mindspeed_ms.command.train import model_provider
from mindspeed_ms.training import pretrain
seen = []
def note(step):
    values = [*step.losses.values(), step.grad_norm]
    seen.append(" ".join(float(value).hex() for value in values))
pretrain(None, model_provider, on_step=note)
print("BITS", *seen, sep="|")
"""


def bits(words, threads):
    """Losses and gradient norms of a run, digit by digit."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *WORDS, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return next(line for line in ended.stdout.splitlines() if line.startswith("BITS"))


@pytest.mark.parametrize(
    "words",
    [
        ["--swiglu", "--normalization", "RMSNorm", "--bf16"],
        ["--num-experts", "4", "--moe-grouped-gemm", "--disable-bias-linear"],
    ],
    ids=["dense bf16", "experts fp32"],
)
def test_threads_change_no_bit(words):
    first = bits(words, 1)
    assert first.count("|") == 3
    assert bits(words, 2) == first


@pytest.mark.parametrize(
    ("kind", "calls"), [(AscendDevice, [True]), (CpuDevice, [])], ids=["ascend", "cpu"]
)
def test_ascend_has_a_switch_for_it(kind, calls, monkeypatch):
    seen = []
    monkeypatch.setattr(ascend_device.ms, "set_deterministic", seen.append)
    kind().set_deterministic()
    assert seen == calls
