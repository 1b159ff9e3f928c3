# SPDX-License-Identifier: Apache-2.0
"""Logs of Megatron's are read, and what makes curves part is told apart by their numbers."""

import time

import numpy as np
import pytest

from mindspeed_ms.command import divergence, parity_log
from mindspeed_ms.command.divergence import Curve
from mindspeed_ms.command.megatron_log import read_arguments, read_log

LINE = (
    "[rank3]: [2026-01-01 00:00:00] iteration {0:8d}/     100 | consumed samples:           16 | "
    "elapsed time per iteration (ms): 12.5 | learning rate: {2:.6E} | global batch size:    16 | "
    "lm loss: {1:.6E} | loss scale: 1.0 | grad norm: 2.318 | number of skipped iterations:   0 |\n"
)


def curve(losses, norms=None, rate=1e-3):
    found = Curve()
    for iteration, loss in enumerate(losses, 1):
        found.losses[iteration] = float(loss)
        found.norms[iteration] = 1.0 if norms is None else float(norms[iteration - 1])
        found.rates[iteration] = rate
        found.batches[iteration] = 16
    return found


def falling(seed, count=30, noise=0.05):
    return 6 - 0.1 * np.arange(count) + noise * np.random.default_rng(seed).normal(size=count)


class NoReplay:
    """Settings change nothing."""

    arguments: dict = {}
    tolerance = 5e-6


def test_a_log_is_read(tmp_path):
    path = tmp_path / "m.log"
    path.write_text(
        "  norm_epsilon .................................... 1e-05\n noise iteration\n"
        + "".join(LINE.format(step, 7 - step, 1e-3) for step in (1, 2, 3, 2))
    )
    lines = read_log(path)
    assert [line.iteration for line in lines] == [1, 2]  # the third was done again
    assert lines[1].values["lm loss"] == 5.0 and lines[1].values["grad norm"] == 2.318
    assert read_arguments(path) == {"norm_epsilon": "1e-05"}
    stated = {"norm_epsilon": "1e-05", "seed": "1234", "swiglu": "True", "unknown": "1"}
    ours = {"norm_epsilon": 1e-6, "seed": 1234, "swiglu": True}
    assert parity_log.differing_arguments(stated, ours) == [
        "--norm-epsilon: 1e-05 in the log, 1e-06 here"
    ]
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match="has no line 'iteration N/ M"):
        read_log(path)


def test_a_long_log_is_read_at_once(tmp_path):
    path = tmp_path / "m.log"
    path.write_text("".join(LINE.format(step, 7, 1e-3) for step in range(1, 20_001)))
    started = time.process_time()
    assert len(read_log(path)) == 20_000
    assert time.process_time() - started < 3  # looking at all lines for every line takes longer


def test_a_log_with_few_lines_has_means():
    found = parity_log.at_lines(curve([6, 4, 5, 3]), [2, 4])
    assert found.losses == {2: 5.0, 4: 4.0}


def judged(ours, theirs):
    parted = divergence.parting(ours, theirs, NoReplay.tolerance)
    return parted, parity_log.judge(NoReplay(), ours, theirs, parted).cause


def test_equal_curves_do_not_part():
    losses = falling(0)
    assert divergence.parting(curve(losses), curve(losses + 1e-6), 5e-6) is None
    assert divergence.parting(curve(losses), curve([*losses[:-1], np.nan]), 5e-6) == 30


def test_a_schedule_shows_in_the_rates():
    ours, theirs = curve(falling(0)), curve(falling(0), rate=2e-3)
    theirs.losses |= {iteration: loss + 0.1 for iteration, loss in theirs.losses.items()}
    theirs.losses[1] = ours.losses[1]
    assert judged(ours, theirs) == (2, "schedule")


def test_other_weights_have_the_same_ups_and_downs():
    noise = 0.01 * np.random.default_rng(9).normal(size=30)
    assert judged(curve(falling(0)), curve(falling(0) + 0.02 + noise)) == (1, "initial weights")


def test_other_batches_have_not():
    assert judged(curve(falling(0)), curve(falling(1))) == (1, "data order")


def test_a_batch_that_differs_is_a_jump():
    losses = falling(0)
    changed = np.where(np.arange(30) < 17, losses, losses + 0.05)
    assert judged(curve(losses), curve(changed)) == (18, "data order")


def test_rounding_grows():
    losses = falling(0)
    changed = losses + 1e-6 * 1.4 ** np.arange(30)
    parted, cause = judged(curve(losses), curve(changed))
    assert parted > 5 and cause == "rounding or optimizer"


def test_few_lines_leave_two_causes():
    assert judged(curve(falling(0, 5)), curve(falling(1, 5))) == (
        1,
        "initial weights or data order",
    )


def test_batch_sizes():
    theirs = curve(falling(1))
    theirs.batches |= dict.fromkeys(range(1, 31), 32)
    assert judged(curve(falling(0)), theirs) == (1, "batch size")
