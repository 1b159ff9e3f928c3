# SPDX-License-Identifier: Apache-2.0
"""Times of all ranks as Megatron's lines.

Source: Megatron-LM ``megatron/core/timers.py`` and ``training_log`` (order and formats).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from mindspeed_ms.core.pipeline_parallel.executor import StepRecord
from mindspeed_ms.core.timers import Timers

STEP_TIMERS = (
    "forward-backward",
    "forward-compute",
    "backward-compute",
    "batch-generator",
    "forward-recv",
    "forward-send",
    "backward-recv",
    "backward-send",
    "forward-send-forward-recv",
    "forward-send-backward-recv",
    "backward-send-forward-recv",
    "backward-send-backward-recv",
    "forward-backward-send-forward-backward-recv",
    "layernorm-grads-all-reduce",
    "embedding-grads-all-reduce",
    "all-grads-sync",
    "params-all-gather",
    "optimizer-unscale-and-check-inf",
    "optimizer-clip-main-grad",
    "optimizer-count-zeros",
    "optimizer-inner-step",
    "optimizer",
)
"""Of a step, in the order of the lines. Megatron's ``optimizer-copy-to-main-grad`` and
``optimizer-copy-main-to-model-params`` are part of the inner step here: one pass does all."""

Option = Literal["max", "minmax", "all"]


def times_by_name(
    ranks: Sequence[Mapping[str, float]], names: Sequence[str], count: int = 1
) -> dict[str, list[float]]:
    """Timer -> seconds of every rank per iteration; timers that nobody used are left out.

    Args:
        ranks: what each rank measured.
        names: the timers that are wanted, in this order.
        count: iterations they were measured over.
    """
    return {
        name: [one.get(name, 0.0) / count for one in ranks]
        for name in names
        if any(one.get(name, 0.0) > 0.0 for one in ranks)
    }


def timer_lines(times: Mapping[str, Sequence[float]], option: Option) -> list[str]:
    """The lines of some timers, none for no timers.

    Args:
        times: timer -> seconds of every rank, 0 for a rank without a part in it.
        option: the largest time, both ends, or one line per rank.
    """
    if not times:
        return []
    if option == "all":
        lines = ["times across ranks (ms):"]
        for name, seconds in times.items():
            lines.append(f"  {name}:")
            lines += [
                f"     rank {rank:2d}: {1e3 * one:.2f}"
                for rank, one in enumerate(seconds)
                if one > 0.0
            ]
        return lines
    start = "max" if option == "max" else "(min, max)"
    lines = [f"{start} time across ranks (ms):"]
    for name, seconds in times.items():
        used = [1e3 * one for one in seconds if one > 0.0]
        both = f"{max(used):.2f}" if option == "max" else f"({min(used):.2f}, {max(used):.2f})"
        lines.append(f"    {(name + ' ').ljust(48, '.')}: {both}")
    return lines


def add_passes(timers: Timers, record: StepRecord) -> None:
    """Add the passes, transfers and waits of a step to the timers."""
    for step, following in zip(record.timeline, [*record.timeline[1:], None], strict=True):
        seconds = step.end - step.start
        if step.kind in ("forward", "backward"):
            timers.add(f"{step.kind}-compute", seconds)
        elif step.kind == "exchange":
            timers.add(step.transfers, seconds)
        elif following is not None:  # a wait, for the input of the pass that follows
            timers.add(f"{following.kind}-recv", seconds)
