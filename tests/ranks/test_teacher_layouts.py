# SPDX-License-Identifier: Apache-2.0
"""A teacher in memory teaches what its saved logits teach, in every layout."""

import json
import tempfile

import numpy as np
import pytest
from megatron_runs import DATA, replay

pytestmark = pytest.mark.ranks
RECORDED = json.loads((DATA / "megatron_core" / "optimizers.json").read_text(encoding="utf-8"))
LLAMA = RECORDED["cases"]["tokens_mtp"]["flags"].partition(" --mtp-num-layers")[0]
STEPS = 3


def worker(flags):
    """Losses of labels and teacher, and norms."""
    with tempfile.TemporaryDirectory() as cache:
        steps = replay(f"{RECORDED['common']} {LLAMA} {flags}", STEPS, cache)
    return [(step.losses["lm loss"], step.losses.get("kl loss"), step.grad_norm) for step in steps]


def run(dist_run, ranks, flags):
    return dist_run(worker, ranks=ranks, timeout=240.0, flags=flags)[-1]


def test_a_teacher_in_memory_teaches_in_every_layout(dist_run, tmp_path):
    teacher, saved = tmp_path / "teacher", tmp_path / "saved"
    usual = run(dist_run, 1, f"--save {teacher} --save-interval {STEPS}")
    freeze = f"--load {teacher} --finetune --freeze-all-layers --logits-save-dir {saved}"
    run(dist_run, 1, f"{freeze} --logits-save-top-k 512 --logits-save-dtype fp32")
    expected = run(dist_run, 1, f"--logits-load-dir {saved}")
    taught = f"--qad-enable --qad-teacher-load {teacher}"
    found = run(dist_run, 1, taught)
    assert found[0][0] == pytest.approx(usual[0][0], abs=1e-6)  # the labels' loss is logged
    np.testing.assert_allclose(
        [(kl, norm) for _, kl, norm in found], [(kl, norm) for kl, _, norm in expected], rtol=1e-4
    )
    assert found[0][1] > 0.01  # the teacher has learned something
    for flags in (
        "--tensor-model-parallel-size 2 --sequence-parallel",
        "--context-parallel-size 2",
        "--micro-batch-size 1 --use-distributed-optimizer",
        "--pipeline-model-parallel-size 2",
    ):
        again = run(dist_run, 2, f"{taught} {flags}")
        np.testing.assert_allclose(again, found, rtol=2e-4, err_msg=flags)
    # Both losses, the teacher's softened, and its description another one than the student's.
    mixed = f"{taught} --kl-temperature 2 --kl-loss-weight 0.5 --qad-lm-loss-weight 0.5"
    mixed += " --num-layers 1"
    alone = run(dist_run, 1, mixed)
    assert alone[0][1] > found[0][1] + 1e-3
    again = run(dist_run, 2, f"{mixed} --tensor-model-parallel-size 2")
    np.testing.assert_allclose(again, alone, rtol=2e-4)
