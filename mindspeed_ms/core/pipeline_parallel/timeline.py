# SPDX-License-Identifier: Apache-2.0
"""Timelines of pipeline steps: simulated from a plan or measured, as a Chrome trace or a picture.

A simulated timeline takes the time of each pass as given and transfers as instantaneous, so what
it shows besides work is the bubble of the schedule and of uneven stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.core.pipeline_parallel.executor import StepRecord
from mindspeed_ms.plan.schedule_plan import (
    Forward,
    Pass,
    Shape,
    compute_order,
    needs_input,
    peak_in_flight,
    plan,
    transfer_of,
)

PASSES = ("forward", "backward")


@dataclass(frozen=True, slots=True)
class Bar:
    """One pass or wait of one stage, in seconds (or units of the given costs) from the start."""

    stage: int
    kind: str
    """``forward``, ``backward``, ``recompute``, ``wait`` or ``exchange``."""
    chunk: int
    microbatch: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the stages of a pipeline do in one step."""

    stages: int
    bars: tuple[Bar, ...]
    peaks: tuple[int, ...]
    """Per stage: most micro-batches (per chunk) that waited for their backward."""

    @property
    def span(self) -> float:
        """From the start of the first to the end of the last pass."""
        passes = [bar for bar in self.bars if bar.kind in PASSES]
        return max(bar.end for bar in passes) - min(bar.start for bar in passes)

    def work(self, stage: int) -> float:
        """Time of a stage's passes, and of what it recomputes beside them."""
        kinds = (*PASSES, "recompute")
        return sum(
            bar.end - bar.start for bar in self.bars if bar.stage == stage and bar.kind in kinds
        )

    @property
    def bubble_ratio(self) -> float:
        """Idle time of all stages over their time of work."""
        total = sum(self.work(stage) for stage in range(self.stages))
        return self.stages * self.span / total - 1.0


def theoretical_bubble_ratio(shape: Shape) -> float:
    """Idle over busy time with equal stages: (stages - 1) / (micro-batches * chunks).

    Source: Narayanan et al., 2021.
    """
    return (shape.stages - 1) / (shape.microbatches * shape.chunks)


Cost = Callable[[int, Pass], float]
"""(stage, pass) -> its time."""


def simulate(shape: Shape, cost: Cost) -> Timeline:
    """Timeline of a schedule whose transfers take no time."""
    orders = [compute_order(shape, stage) for stage in range(shape.stages)]
    position, clock = [0] * shape.stages, [0.0] * shape.stages
    arrival: dict[tuple[str, int, int, int], float] = {}
    bars: list[Bar] = []
    while any(p < len(order) for p, order in zip(position, orders, strict=True)):
        for stage, order in enumerate(orders):
            while position[stage] < len(order):
                coming = order[position[stage]]
                kind = "forward" if isinstance(coming, Forward) else "backward"
                key = (kind, stage, coming.chunk, coming.microbatch)
                if needs_input(shape, stage, coming) and key not in arrival:
                    break
                start = max(clock[stage], arrival.get(key, 0.0))
                end = start + cost(stage, coming)
                bars.append(Bar(stage, kind, coming.chunk, coming.microbatch, start, end))
                clock[stage] = end
                position[stage] += 1
                transfer = transfer_of(shape, stage, coming)
                if transfer is not None:
                    place = (transfer.destination, transfer.destination_chunk, transfer.microbatch)
                    arrival[(kind, *place)] = end
    peaks = tuple(peak_in_flight(plan(shape, stage)) for stage in range(shape.stages))
    return Timeline(shape.stages, tuple(bars), peaks)


def measured(records: Sequence[StepRecord]) -> Timeline:
    """Timeline of the records of all stages of one pipeline, in stage order."""
    zero = min(step.start for record in records for step in record.timeline)
    bars = tuple(
        Bar(stage, step.kind, step.chunk, step.microbatch, step.start - zero, step.end - zero)
        for stage, record in enumerate(records)
        for step in record.timeline
    )
    return Timeline(len(records), bars, tuple(record.peak_in_flight for record in records))


def predicted(timeline: Timeline, shape: Shape) -> Timeline:
    """What the schedule alone makes of a measured step.

    Every pass takes the mean of the measured ones of its stage, chunk and kind, and transfers take
    no time; where the measured step is longer, time went into transfers and uneven passes.

    Args:
        timeline: the measured step.
        shape: its schedule.
    """
    times: dict[tuple[int, int, str], list[float]] = {}
    for bar in timeline.bars:
        if bar.kind in PASSES:
            times.setdefault((bar.stage, bar.chunk, bar.kind), []).append(bar.end - bar.start)

    def cost(stage: int, step: Pass) -> float:
        kind = "forward" if isinstance(step, Forward) else "backward"
        one = times[stage, step.chunk, kind]
        return sum(one) / len(one)

    return simulate(shape, cost)


def shape_of(timeline: Timeline, group_size: int | None = None) -> Shape:
    """Schedule of a measured step.

    Args:
        timeline: the step.
        group_size: micro-batches of a chunk's turn, which bars do not tell; None: the usual ones.
    """
    passes = [bar for bar in timeline.bars if bar.kind in PASSES]
    microbatches = 1 + max(bar.microbatch for bar in passes)
    chunks = 1 + max(bar.chunk for bar in passes)
    return Shape(timeline.stages, microbatches, chunks, group_size)


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """Trace for chrome://tracing or Perfetto: a process per pipeline, a thread per stage."""
    events: list[dict[str, Any]] = [
        {
            "ph": "M",
            "name": "thread_name",
            "pid": 0,
            "tid": stage,
            "args": {"name": f"stage {stage}"},
        }
        for stage in range(timeline.stages)
    ]
    events += [
        {
            "ph": "X",
            "pid": 0,
            "tid": bar.stage,
            "name": f"{bar.kind} {bar.microbatch}" + (f".{bar.chunk}" if bar.chunk else ""),
            "cat": bar.kind,
            "ts": bar.start * 1e6,
            "dur": (bar.end - bar.start) * 1e6,
            "args": {"chunk": bar.chunk, "microbatch": bar.microbatch},
        }
        for bar in timeline.bars
    ]
    summary = {"bubble_ratio": timeline.bubble_ratio, "peak_in_flight": list(timeline.peaks)}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": summary}


def from_chrome_trace(trace: dict[str, Any]) -> Timeline:
    """The timeline that ``chrome_trace`` wrote.

    Raises:
        ValueError: it wrote something else.
    """
    try:
        bars = tuple(
            Bar(
                event["tid"],
                event["cat"],
                event["args"]["chunk"],
                event["args"]["microbatch"],
                event["ts"] / 1e6,
                (event["ts"] + event["dur"]) / 1e6,
            )
            for event in trace["traceEvents"]
            if event["ph"] == "X"
        )
        peaks = tuple(trace["otherData"]["peak_in_flight"])
        return Timeline(len(peaks), bars, peaks)
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no timeline of a pipeline ({error!r}); give its file") from None
