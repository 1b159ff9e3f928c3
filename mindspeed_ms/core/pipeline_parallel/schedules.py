# SPDX-License-Identifier: Apache-2.0
"""Forward and backward of all micro-batches of a step, under Megatron's entry names.

The order of work comes from ``schedule_plan``; ``executor`` carries it out. These functions bring
Megatron's arguments into their form.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mindspeed_ms.backend import memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.pipeline_parallel.executor import (
    ForwardStep,
    LossFunc,
    Report,
    StageExecutor,
    StageWork,
    StepRecord,
    unwrapped,
)
from mindspeed_ms.core.pipeline_parallel.p2p_communication import StageLink, TransferFormat
from mindspeed_ms.plan.schedule_plan import Shape

__all__ = [
    "ForwardStep",
    "LossFunc",
    "Report",
    "forward_backward_no_pipelining",
    "forward_backward_pipelining_with_interleaving",
    "forward_backward_pipelining_without_interleaving",
    "get_forward_backward_func",
    "get_tensor_shapes",
]

Recorder = Callable[[StepRecord], None]
"""Called with what happened on this rank, after the step."""


def get_forward_backward_func() -> Callable[..., list[Report]]:
    """The schedule for the current layout."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return forward_backward_no_pipelining
    if (parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1) > 1:
        return forward_backward_pipelining_with_interleaving
    return forward_backward_pipelining_without_interleaving


def get_tensor_shapes(
    config: TransformerConfig, seq_length: int | None = None, micro_batch_size: int | None = None
) -> tuple[int, int, int]:
    """Shape of what travels between stages: [s(/cp)(/tp), b, h].

    Args:
        config: model configuration.
        seq_length: tokens per sequence, default the configured ones.
        micro_batch_size: sequences per micro-batch, default the configured ones.
    """
    rows = config.seq_length if seq_length is None else seq_length
    rows //= parallel_state.get_context_parallel_world_size()
    if config.parallel_config.sequence_parallel:
        rows //= parallel_state.get_tensor_model_parallel_world_size()
    batch = config.dataset_config.batch_size if micro_batch_size is None else micro_batch_size
    return rows, batch, config.hidden_size


def forward_backward_no_pipelining(
    *,
    forward_step_func: ForwardStep,
    data_iterator: Iterator,
    model: Any,
    num_microbatches: int,
    loss_scale: float = 1.0,
    forward_only: bool = False,
    recorder: Recorder | None = None,
    **_formats: Any,
) -> list[Report]:
    """One micro-batch after the other on a model without stages.

    Args:
        forward_step_func: see ``ForwardStep``.
        data_iterator: yields the micro-batches.
        model: the one model chunk, alone or in a list.
        num_microbatches: micro-batches of the step; each loss weighs 1 / num_microbatches.
        loss_scale: factor on the gradients of the loss.
        forward_only: compute losses, not gradients.
        recorder: see ``Recorder``.
        _formats: ``seq_length`` and ``micro_batch_size``, which matter between stages only.

    Returns:
        What the loss function reported for each micro-batch.
    """
    chunks = _as_list(model)
    shape = Shape(1, num_microbatches, forward_only=forward_only)
    work = StageWork(
        forward_step=forward_step_func,
        data_iterators=_as_list(data_iterator),
        chunks=chunks,
        loss_scale=loss_scale,
    )
    return _run(StageExecutor(shape, work, None), recorder)


def forward_backward_pipelining_without_interleaving(  # noqa: PLR0913 - Megatron's signature
    *,
    forward_step_func: ForwardStep,
    data_iterator: Iterator,
    model: Any,
    num_microbatches: int,
    seq_length: int | None = None,
    micro_batch_size: int | None = None,
    loss_scale: float = 1.0,
    forward_only: bool = False,
    recorder: Recorder | None = None,
) -> list[Report]:
    """1F1B: at most ``stages - stage`` micro-batches are in flight on a stage.

    Every stage reads the same micro-batches; arguments as in ``forward_backward_no_pipelining``,
    and ``seq_length`` and ``micro_batch_size`` where they differ from the configured ones.

    Returns:
        What the loss function reported for each micro-batch on the last stage; [] elsewhere.

    Parallelism: collective over the pipeline group.
    """
    (chunk,) = _as_list(model)
    group = parallel_state.get_pipeline_model_parallel_group()
    work = StageWork(
        forward_step=forward_step_func,
        data_iterators=_as_list(data_iterator),
        chunks=[chunk],
        stage=group.rank,
        loss_scale=loss_scale,
        recomputes_early=unwrapped(chunk).config.parallel_config.recomputes_early,
    )
    shape = Shape(group.size, num_microbatches, forward_only=forward_only)
    link = StageLink(group, _transfer_format(chunk, seq_length, micro_batch_size))
    return _run(StageExecutor(shape, work, link), recorder)


def forward_backward_pipelining_with_interleaving(  # noqa: PLR0913 - Megatron's signature
    *,
    forward_step_func: ForwardStep,
    data_iterator: Any,
    model: Sequence[Any],
    num_microbatches: int,
    seq_length: int | None = None,
    micro_batch_size: int | None = None,
    loss_scale: float = 1.0,
    forward_only: bool = False,
    recorder: Recorder | None = None,
) -> list[Report]:
    """Interleaved 1F1B over several model chunks per stage.

    Arguments as without interleaving; ``model`` holds the chunks, and ``data_iterator`` is one
    iterator, whose micro-batches every chunk gets, or a list with one per chunk.

    Returns:
        What the loss function reported for each micro-batch on the last stage; [] elsewhere.

    Raises:
        ValueError: a number of micro-batches that the chunks cannot take turns on.

    Parallelism: collective over the pipeline group.
    """
    chunks = list(model)
    group = parallel_state.get_pipeline_model_parallel_group()
    parallel = unwrapped(chunks[0]).config.parallel_config
    shape = Shape(
        group.size,
        num_microbatches,
        len(chunks),
        parallel.microbatch_group_size_per_vp_stage,
        forward_only,
    )
    iterators = (
        data_iterator
        if isinstance(data_iterator, (list, tuple))
        else itertools.tee(data_iterator, len(chunks))
    )
    work = StageWork(
        forward_step=forward_step_func,
        data_iterators=iterators,
        chunks=chunks,
        stage=group.rank,
        loss_scale=loss_scale,
        recomputes_early=parallel.recomputes_early,
    )
    link = StageLink(group, _transfer_format(chunks[0], seq_length, micro_batch_size))
    return _run(StageExecutor(shape, work, link), recorder)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _run(executor: StageExecutor, recorder: Recorder | None) -> list[Report]:
    reports = executor.run()
    if recorder is not None:
        recorder(executor.record)
    return reports


def _transfer_format(
    chunk: Any, seq_length: int | None, micro_batch_size: int | None
) -> TransferFormat:
    config: TransformerConfig = unwrapped(chunk).config
    return TransferFormat(
        shape=get_tensor_shapes(config, seq_length, micro_batch_size),
        dtype=memory.dtype_of(config.residual_dtype),
        variable_shapes=config.parallel_config.variable_seq_lengths,
        overlap=config.parallel_config.overlap_p2p_comm,
    )
