# SPDX-License-Identifier: Apache-2.0
"""The measured timeline of one iteration, written as a Chrome trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.pipeline_parallel.executor import StepRecord
from mindspeed_ms.core.pipeline_parallel.timeline import (
    Bar,
    Timeline,
    chrome_trace,
    measured,
    predicted,
    shape_of,
)
from mindspeed_ms.files.whole import write_text

MEASURED_ITERATION = 2
"""The first one also pays for what is done once, such as making buffers."""


def timeline_recorder(
    path: str | None, iteration: int, train_iters: int
) -> Callable[[StepRecord], None] | None:
    """What takes the record of an iteration and writes it; None when it is not wanted.

    Args:
        path: file of ``--pipeline-timeline``.
        iteration: the iteration that is about to run, from 1.
        train_iters: iterations of the run; a shorter run than two is measured in its only one.
    """
    if path is None or iteration != min(MEASURED_ITERATION, train_iters):
        return None
    return lambda record: write_timeline(record, Path(path))


def gathered(record: StepRecord) -> Timeline | None:
    """The timeline of the first pipeline, on rank 0; ranks of several hosts differ by their clocks.

    Parallelism: collective over every pipeline group.
    """
    group = parallel_state.get_pipeline_model_parallel_group()
    records = comm.all_gather_object(record, group) if group.size > 1 else [record]
    return measured(records) if comm.get_rank() == 0 else None


def write_timeline(record: StepRecord, path: Path) -> None:
    """Write the timeline of the first pipeline (collective over every pipeline group)."""
    timeline = gathered(record)
    if timeline is not None:
        write_text(path, json.dumps(chrome_trace(timeline)))


def timeline_facts(timeline: Timeline, group_size: int | None) -> dict[str, Any]:
    """A measured timeline beside the one that its schedule predicts, for the record of a run.

    Args:
        timeline: the measured one.
        group_size: micro-batches of a chunk's turn; None: the usual ones.
    """
    forecast = predicted(timeline, shape_of(timeline, group_size))
    return {
        "measured": [_plain(bar) for bar in timeline.bars],
        "predicted": [_plain(bar) for bar in forecast.bars],
        "measured_bubble": timeline.bubble_ratio,
        "predicted_bubble": forecast.bubble_ratio,
        "peaks": list(timeline.peaks),
    }


def _plain(bar: Bar) -> list[Any]:
    return [bar.stage, bar.kind, bar.chunk, bar.microbatch, round(bar.start, 6), round(bar.end, 6)]
