# SPDX-License-Identifier: Apache-2.0
"""Recomputation while a stage waits for its gradient: the same numbers, at another time."""

import pytest
from test_teacher_layouts import LLAMA, RECORDED, replay, tempfile

from mindspeed_ms.core.pipeline_parallel.executor import StageExecutor
from mindspeed_ms.plan.schedule_plan import Shape
from mindspeed_ms.planning.timing import PassSeconds, play

pytestmark = pytest.mark.ranks
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
FULL += " --hidden-dropout 0.1 --pipeline-model-parallel-size 2 --micro-batch-size 1"


def worker(flags):
    """Losses and norms, and the kinds of what the last step did in its order."""
    records, real = [], StageExecutor.run

    def run(self):
        reports = real(self)
        records.append([step.kind for step in self.record.timeline])
        return reports

    StageExecutor.run = run
    try:
        with tempfile.TemporaryDirectory() as cache:
            steps = replay(f"{RECORDED['common']} {LLAMA} {FULL} {flags}", 3, cache)
    finally:
        StageExecutor.run = real
    return [(step.losses["lm loss"], step.grad_norm) for step in steps], records[-1]


@pytest.mark.parametrize("flag", ["--recompute-in-advance", "--recompute-in-bubble"])
def test_layers_are_computed_again_before_their_gradient_is_waited_for(dist_run, flag):
    usual = dist_run(worker, ranks=2, timeout=240.0, flags="")
    early = dist_run(worker, ranks=2, timeout=240.0, flags=flag)
    assert [numbers for numbers, _ in early] == [numbers for numbers, _ in usual]
    first, last = early[0][1], early[1][1]
    assert "recompute" not in usual[0][1] + last  # the last stage waits for no gradient
    assert first.count("recompute") == first.count("backward") > 1
    for place, kind in enumerate(first):
        if kind == "recompute":
            assert first[place + 1 : place + 3] == ["wait", "backward"]


def test_virtual_stages_do_so_too(dist_run):
    virtual = "--num-layers 4 --num-layers-per-virtual-pipeline-stage 1"
    usual = dist_run(worker, ranks=2, timeout=240.0, flags=virtual)
    early = dist_run(worker, ranks=2, timeout=240.0, flags=f"{virtual} --recompute-in-bubble")
    assert [numbers for numbers, _ in early] == [numbers for numbers, _ in usual]
    counts = [kinds.count("recompute") / kinds.count("backward") for _, kinds in early]
    assert counts == [1.0, 0.5]  # the last virtual stage begins with its own loss


def test_the_plan_hides_recomputation_in_the_bubble():
    shape = Shape(4, 4)
    later = [[PassSeconds(1.0, 3.0)]] * 4
    early = [[PassSeconds(1.0, 3.0, early=1.0)]] * 4
    assert play(shape, early).busy == play(shape, later).busy
    # The first backward of every stage but the last waits anyway: so does its recomputation.
    assert play(shape, early).seconds == play(shape, later).seconds - 3.0
