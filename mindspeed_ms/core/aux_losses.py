# SPDX-License-Identifier: Apache-2.0
"""Losses beside the main one: how they reach the gradients, and what is logged of them.

A layer in the middle of the model cannot return a loss: other stages of the pipeline follow. So an
auxiliary loss is attached to an activation. In backward the activation's gradient passes through
unchanged, and the loss gets the gradient that the main loss of the same micro-batch started with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.core import loss_options, parallel_state, run_state

Kind = Literal["part", "mean"]
"""What a rank records over the ranks that share a sequence: a part of a sum, or its own mean."""


@dataclass(slots=True)
class _Record:
    """What the layers of a run have noted in the step that is going on."""

    scale: float = 1.0
    step: int = 0
    recorded: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)


def _record() -> _Record:
    return run_state.current().member(_Record)


def begin_step(scale: float) -> None:
    """Begin a run over micro-batches, whose attached losses start with the gradient ``scale``.

    The schedules set it: loss scale / micro-batches, like the seed of the main loss. Like the main
    loss it is multiplied by the context parallel size, because gradients are averaged over data x
    context parallel ranks while each of them holds a part of the loss of a sequence; a run that
    weighs by tokens counts those ranks in what its gradients are multiplied by at the end.
    """
    record = _record()
    ranks = parallel_state.get_context_parallel_world_size()
    if ranks > 1 and loss_options.current().weighs_by_tokens:
        ranks = 1
    record.scale = scale * ranks
    record.step += 1
    record.recorded.clear()  # of a forward outside of steps, that nobody collected


def current_step() -> int:
    """Number of the run over micro-batches that is going on."""
    return _record().step


class _Attached(autograd.Function):
    """The activation; the loss only takes part in backward."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, loss: Tensor) -> Tensor:
        ctx.shape = tuple(loss.shape)
        return activation.view(activation.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, Tensor(np.full(ctx.shape, _record().scale, np.float32), mstype.float32)


def attach(activation: Tensor, loss: Tensor) -> Tensor:
    """The activation, whose backward also starts the backward of a scalar fp32 loss.

    Source: Megatron-LM ``MoEAuxLossAutoScaler`` (behaviour).
    """
    return _Attached.apply(activation, loss)


def record(name: str, layer_number: int, value: Tensor) -> None:
    """Note a scalar of this micro-batch for the log.

    Args:
        name: of the loss.
        layer_number: global number of the layer, from 1.
        value: scalar; it is read when the step is over.
    """
    _record().recorded.setdefault((name, layer_number), []).append(autograd.detach(value))


def collect(kinds: Mapping[str, Kind], num_layers: int, num_microbatches: int) -> dict[str, Any]:
    """What was recorded since the last call, as means over micro-batches and data parallel ranks.

    Args:
        kinds: the losses that the model has, in the same order on every rank.
        num_layers: layers that are numbered.
        num_microbatches: micro-batches since the last call.

    Returns:
        name -> fp32 array [num_layers], 0 where a layer has no such loss.

    Parallelism: collective over the ranks of a pipeline, of a sequence, and data parallel ranks.
    """
    values = np.zeros((len(kinds), num_layers), np.float32)
    sharing = parallel_state.get_tensor_and_context_parallel_group()
    recorded = _record().recorded
    for row, (name, kind) in enumerate(kinds.items()):
        for layer in range(num_layers):
            for value in recorded.get((name, layer + 1), ()):
                values[row, layer] += memory.as_numpy(value).item()
        if kind == "mean":
            values[row] /= sharing.size
    recorded.clear()
    values /= num_microbatches * parallel_state.get_data_parallel_world_size()
    total = memory.from_numpy(values)
    for group in (
        sharing,
        parallel_state.get_data_parallel_group(),
        parallel_state.get_pipeline_model_parallel_group(),
    ):
        if group.size > 1:
            comm.all_reduce(total, group=group)
    return dict(zip(kinds, memory.as_numpy(total).copy(), strict=True))
