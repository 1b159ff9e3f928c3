"""The measured timeline of one iteration, written as a Chrome trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.pipeline_parallel.executor import StepRecord
from mindspeed_ms.core.pipeline_parallel.timeline import chrome_trace, measured

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


def write_timeline(record: StepRecord, path: Path) -> None:
    """Write the timeline of the first pipeline; ranks of several hosts are shifted by their clocks.

    Parallelism: collective over every pipeline group.
    """
    group = parallel_state.get_pipeline_model_parallel_group()
    records = comm.all_gather_object(record, group) if group.size > 1 else [record]
    if comm.get_rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(chrome_trace(measured(records))), encoding="utf-8")
