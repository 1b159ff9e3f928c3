# SPDX-License-Identifier: Apache-2.0
"""A teacher's logits, saved in one layout, teach a student in another."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import DATA, replay

pytestmark = pytest.mark.ranks
RECORDED = json.loads((DATA / "megatron_core" / "optimizers.json").read_text(encoding="utf-8"))
LLAMA = RECORDED["cases"]["tokens_mtp"]["flags"].partition(" --mtp-num-layers")[0]
TEACHER = "--freeze-all-layers --logits-save-top-k 512 --logits-save-dtype fp32 --logits-save-dir"
STEPS = 4


def worker(flags):
    """Losses and norms."""
    with tempfile.TemporaryDirectory() as cache:
        steps = replay(f"{RECORDED['common']} {LLAMA} {flags}", STEPS, cache)
    return [(step.losses["lm loss"], step.grad_norm) for step in steps]


def run(dist_run, ranks, flags):
    return dist_run(worker, ranks=ranks, timeout=240.0, flags=flags)[-1]


def test_saved_logits_teach_in_every_layout(dist_run, tmp_path):
    usual = run(dist_run, 1, "")
    taught = run(dist_run, 2, f"{TEACHER} {tmp_path} --tensor-model-parallel-size 2")
    assert all(norm is None for _, norm in taught)
    assert taught[0][0] == pytest.approx(usual[0][0], abs=1e-5)
    assert len(list(Path(tmp_path).glob("*.npz"))) == STEPS
    # A student that begins where its teacher stands learns nothing.
    load = f"--logits-load-dir {tmp_path} --weight-decay 0"
    assert run(dist_run, 1, load)[0] == pytest.approx((0.0, 0.0), abs=1e-4)
    # Half of the loss is that of the labels: its gradient alone is left at first.
    half = run(dist_run, 1, f"{load} --logits-load-kd-loss-alpha 0.5")
    assert half[0] == pytest.approx((usual[0][0] / 2, usual[0][1] / 2), rel=1e-4)
    for flags in (
        "--tensor-model-parallel-size 2 --sequence-parallel",
        "--context-parallel-size 2",
        "--micro-batch-size 1 --use-distributed-optimizer",
        "--pipeline-model-parallel-size 2",
    ):
        found = run(dist_run, 2, f"{load} --logits-load-kd-loss-alpha 0.5 {flags}")
        np.testing.assert_allclose(found, half, rtol=2e-4, err_msg=flags)


@pytest.mark.slow
def test_logits_of_other_data_are_refused_or_passed_over(dist_run, tmp_path):
    run(dist_run, 1, f"{TEACHER} {tmp_path}")
    other = f"--logits-load-dir {tmp_path} --seed 77"
    passed = run(dist_run, 1, f"{other} --logits-load-ignore-errors")
    assert passed == run(dist_run, 1, "--seed 77")
    with pytest.raises(Exception, match="was saved with other data"):
        run(dist_run, 1, other)
