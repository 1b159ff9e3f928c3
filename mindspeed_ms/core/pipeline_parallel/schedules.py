"""Forward and backward of all micro-batches of a step, under Megatron's entry names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd
from mindspeed_ms.core import parallel_state

LossFunc = Callable[[Tensor], tuple[Tensor, float, dict[str, tuple[Any, Any]]]]
"""Model output -> (loss of the micro-batch, tokens in it, what to report as (sum, count))."""

ForwardStep = Callable[[Iterator, Any], tuple[Tensor, LossFunc]]
"""(data iterator, model) -> (model output, its loss function)."""


def get_forward_backward_func() -> Callable[..., list[dict[str, tuple[Any, Any]]]]:
    """The schedule for the current layout.

    Raises:
        NotImplementedError: more than one pipeline stage.
    """
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    if stages > 1:
        raise NotImplementedError(
            f"pipeline_model_parallel_size is {stages}; only 1 is supported: use tensor and data "
            "parallelism"
        )
    return forward_backward_no_pipelining


def forward_backward_no_pipelining(
    *,
    forward_step_func: ForwardStep,
    data_iterator: Iterator,
    model: Sequence[Any],
    num_microbatches: int,
    loss_scale: float = 1.0,
    forward_only: bool = False,
) -> list[dict[str, tuple[Any, Any]]]:
    """One micro-batch after the other on a model without stages.

    Args:
        forward_step_func: see ``ForwardStep``.
        data_iterator: yields the micro-batches.
        model: the one model chunk.
        num_microbatches: micro-batches of the step; each loss weighs 1 / num_microbatches.
        loss_scale: factor on the gradients of the loss.
        forward_only: compute losses, not gradients.

    Returns:
        What the loss function reported for each micro-batch.
    """
    (chunk,) = model
    autograd.enable()
    reports = []
    for _ in range(num_microbatches):
        if forward_only:
            with autograd.no_grad():
                output, loss_func = forward_step_func(data_iterator, chunk)
                _, _, report = loss_func(output)
        else:
            output, loss_func = forward_step_func(data_iterator, chunk)
            loss, _, report = loss_func(output)
            seed = Tensor(loss_scale / num_microbatches, loss.dtype)
            autograd.backward(loss, seed)
        reports.append(report)
    return reports
