# SPDX-License-Identifier: Apache-2.0
"""Search for layouts: those that fit the memory of a device, fastest first, and why.

All axes vary together: tensor, pipeline, context, expert and expert tensor sizes, model chunks,
layers per stage, micro-batch, sharding, and what is recomputed. A quick look at every combination
says which are worth a plan; the plan decides.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mindspeed_ms.config import AllConfig
from mindspeed_ms.planning.parameters import model_spec
from mindspeed_ms.planning.plan import Plan, make_plan
from mindspeed_ms.planning.quick import Estimate, QuickLook
from mindspeed_ms.planning.space import (
    NOTHING,
    ZERO_LEVELS,
    Layout,
    Recompute,
    applied,
    layouts,
    left_out,
    recomputes,
)
from mindspeed_ms.planning.timing import Device

_MARGIN = 1.03
"""Beyond the memory by which a quick look may be wrong."""
_SPARE = 4
"""Plans beyond those asked for: a quick look does not order them exactly."""
_ENOUGH = 40
"""Layouts whose quick look must be beaten by what is not looked at any closer."""

_NAMES: Mapping[str, str] = {
    "work": "matrix products shared out less evenly",
    "again": "recomputation",
    "tensor": "tensor-parallel traffic",
    "inner": "context and expert traffic",
    "waiting": "pipeline bubble",
    "exposed": "gradients, weights and optimizer",
}
"""Part of a step -> why one layout loses to another."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout and its plan."""

    plan: Plan
    layout: Layout

    @property
    def flags(self) -> str:
        """How a command line asks for it."""
        words = self.layout.flags
        listed = self.plan.config.parallel_config.num_layer_list
        if listed is None:
            return words
        rows = [list(row) if isinstance(row, tuple) else row for row in listed]
        return f'{words} --num-layer-list "{rows}"'.replace(", ", ",")


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found.

    Attributes:
        candidates: those that fit, fastest first.
        beyond: the one nearest to fitting of those that would be faster; roughly.
        looked_at: layouts that were looked at.
    """

    candidates: tuple[Candidate, ...]
    beyond: Estimate | None
    looked_at: int


def suggest(
    config: AllConfig, world_size: int, device: Device | None = None, count: int = 10
) -> list[Candidate]:
    """Layouts of the same model, batch and length that fit, fastest first; see ``search``.

    Raises:
        ValueError: nothing fits.
    """
    return list(search(config, world_size, device, count).candidates)


def search(
    config: AllConfig, world_size: int, device: Device | None = None, count: int = 10
) -> Search:
    """Search layouts of the same model, batch and length.

    Every candidate shards the optimizer state. Of candidates that differ in sharding or in what is
    recomputed only, the fastest that fits is kept.

    Args:
        config: the model and its batch.
        world_size: ranks.
        device: what a rank runs on.
        count: candidates to return.

    Raises:
        ValueError: nothing fits.
    """
    device = device or Device()
    fitting, beyond, looked = _looks(config, world_size, device)
    sections, total = config.to_dict(), config.global_batch_size(world_size)
    found: list[Candidate] = []
    done: set[Layout] = set()
    least = min((look.memory for look in beyond), default=math.inf)
    for look in fitting:
        key = replace(look.layout, zero="z1", recompute=NOTHING)
        if key in done:
            continue
        changed = applied(config, sections, world_size, total, look.layout)
        if changed is None:
            continue
        plan = make_plan(changed, world_size, device)
        least = min(least, plan.bytes_at_peak)
        if plan.fits:
            found.append(Candidate(plan, look.layout))
            done.add(key)
            if len(found) == count + _SPARE:
                break
    if not found:
        raise ValueError(
            f"no layout on {world_size} ranks fits into {device.memory_bytes / 2**30:.0f} GiB; the "
            f"smallest needs {least / 2**30:.1f} GiB, use more ranks or more memory "
            "(--device-memory)"
        )
    found.sort(key=lambda candidate: candidate.plan.step_seconds)
    faster = [look for look in beyond if look.seconds < 0.99 * found[0].plan.step_seconds]
    nearest = min(faster, key=lambda look: look.memory, default=None)
    return Search(tuple(found[:count]), nearest, looked)


def _looks(
    config: AllConfig, world_size: int, device: Device
) -> tuple[list[Estimate], list[Estimate], int]:
    """(What fits, fastest first; what does not, with the least each needs; layouts looked at).

    First every combination of sizes without recomputation and with the plainest sharding, which no
    other choice makes faster; then, in this order, what each needs to fit, until enough are found
    that are faster than all the rest can be.
    """
    quick = QuickLook(config, world_size, device, config.to_dict())
    spec = model_spec(config)
    sizes = layouts(config, world_size, device.ranks_per_node)
    bounds = [look for look in map(quick.look, sizes) if look is not None]
    bounds.sort(key=lambda look: (look.seconds, look.memory))
    fitting: list[Estimate] = []
    beyond: list[Estimate] = []
    slowest: list[float] = []
    for bound in bounds:
        if len(slowest) == _ENOUGH and bound.seconds > -slowest[0]:
            break
        choices = recomputes(spec, quick.longest_chunk(bound.layout))
        fits, least = _least_that_fits(quick, bound, choices, device.memory_bytes)
        if not fits:
            beyond.append(least)
            continue
        fitting += fits
        heapq.heappush(slowest, -min(look.seconds for look in fits))
        if len(slowest) > _ENOUGH:
            heapq.heappop(slowest)
    fitting.sort(key=lambda look: (look.seconds, look.memory))
    return fitting, beyond, len(bounds)


def _least_that_fits(
    quick: QuickLook, bound: Estimate, choices: Sequence[Recompute], limit: float
) -> tuple[list[Estimate], Estimate]:
    """By sharding, the cheapest recomputations that fit; and what needs the least memory."""
    fits, least = [], bound
    for zero in ZERO_LEVELS:
        for recompute in choices:
            look = quick.look(replace(bound.layout, zero=zero, recompute=recompute))
            if look is None:
                break
            least = look if look.memory < least.memory else least
            if look.memory <= limit * _MARGIN:
                fits.append(look)
                if look.memory * _MARGIN <= limit:
                    break  # more recomputation only makes it slower
        if fits and fits[-1].memory * _MARGIN <= limit and fits[-1].layout.recompute == NOTHING:
            break  # more sharding only makes it slower
    return fits, least


def reasons(best: Plan, other: Plan) -> str:
    """Why a layout is slower than the best one: the parts of its step that grew, and shrank."""
    parts = {name: other.parts[name] - best.parts[name] for name in _NAMES}
    worth = 0.005 * best.step_seconds
    ordered = sorted(parts, key=lambda name: -parts[name])
    grown = [f"{_NAMES[name]} +{parts[name]:.2g} s" for name in ordered if parts[name] > worth]
    shrunk = [
        f"{_NAMES[name].replace('shared out less evenly', '').strip()} {parts[name]:.2g} s"
        for name in reversed(ordered)
        if parts[name] < -worth
    ]
    text = ", ".join(grown) or "no part is much longer"
    return text + (f"; less in {', '.join(shrunk)}" if shrunk else "")


def suggestion_lines(found: Search, config: AllConfig | None = None) -> list[str]:
    """Candidates as lines of text, fastest first, each with why it lost.

    Args:
        found: what a search found.
        config: of the script, whose own flags may have to go.
    """
    lines = [
        "-------------- layouts that fit, fastest first -------------",
        f"  looked at {found.looked_at:,} layouts: tensor, pipeline, context, expert sizes, "
        "chunks, micro-batch, each with sharding and recomputation",
    ]
    best = found.candidates[0].plan
    taken_back: Iterable[str] = ()
    for number, candidate in enumerate(found.candidates, start=1):
        plan = candidate.plan
        lines.append(
            f"  {number}. {plan.step_seconds:.3g} s, {plan.utilization:.1%} of the peak, "
            f"{plan.bytes_at_peak / 2**30:.1f} GiB: {candidate.flags}"
        )
        if number > 1:
            slower = plan.step_seconds / best.step_seconds - 1
            lines.append(f"     {slower:.1%} slower than 1: {reasons(best, plan)}")
        if config is not None:
            taken_back = itertools.chain(taken_back, left_out(config, plan.config))
    if found.beyond is not None:
        look = found.beyond
        lines.append(
            f"  faster, but does not fit: about {look.seconds:.3g} s with "
            f"{look.memory / 2**30:.0f} GiB: {look.layout.flags}"
        )
    names = sorted(set(taken_back))
    if names:
        lines.append(f"  where a line above does not give them, leave out: {' '.join(names)}")
    return lines


def with_memory(device: Device, gibibytes: float | None, tflops: float | None) -> Device:
    """A device with the figures the user gave."""
    if gibibytes is not None:
        device = replace(device, memory_bytes=gibibytes * 2**30)
    return device if tflops is None else replace(device, tflops=tflops)
