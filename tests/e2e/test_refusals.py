# SPDX-License-Identifier: Apache-2.0
"""A refusal of several ranks: first of all, once, with the status of a user's mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZES = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 8 --micro-batch-size 1 "
    "--max-position-embeddings 8 --padded-vocab-size 16 --lr 1e-3 --mock-data --train-iters 1"
).split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--hiden-size 3", "unknown flag --hiden-size; did you mean --hidden-size?"),
        ("--tensor-model-parallel-size 4", "num_attention_heads (2) must be divisible by tensor"),
        ("--enable-mhc-connections", "--enable-mhc-connections is refused: layers of this kind"),
    ],
)
def test_a_refusal_is_all_that_is_seen_and_is_seen_once(words, message):
    ended = subprocess.run(
        ["mpiexec", "-n", "2", sys.executable, "pretrain_gpt.py", *SIZES, *words.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 2, output
    assert output.count("\n") == 1 and message in output, output
