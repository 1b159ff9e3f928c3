# SPDX-License-Identifier: Apache-2.0
"""Gradients of parameters without flat buffers, summed or averaged over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group, ReduceOp
from mindspeed_ms.config import ModelParallelConfig, TrainingConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import shard_of

SEQUENCE_PARALLEL_NAMES = ("norm", "mlp.projection.bias", "attention.out_proj.bias")
"""Parts of names of replicated parameters that see a part of the sequence only."""


class ParallelTrainingReducer:
    """Reduces lists of gradients in place.

    Args:
        params: the parameters, in the order of the gradients.
        training_config: ``loss_reduction`` says whether data parallel gradients are averaged, and
            its ``parallel_config`` whether the sequence is split.

    Parallelism: every call is collective over the groups it reduces over.
    """

    def __init__(self, params: Sequence[Parameter], training_config: TrainingConfig) -> None:
        self.params = list(params)
        self.averages = training_config.loss_reduction == "mean"
        parallel = training_config.parallel_config or ModelParallelConfig()
        self.sequence_parallel = parallel.sequence_parallel

    def inplace_reduce_dp_grad(
        self, grads: list[Tensor], params: Sequence[Parameter] | None = None
    ) -> None:
        """Mean (or sum) over data x context parallel ranks; experts over their own."""
        whole = parallel_state.get_data_parallel_group(with_context_parallel=True)
        for index, param in enumerate(self.params if params is None else params):
            is_expert = shard_of(param).is_expert
            group = parallel_state.get_expert_data_parallel_group() if is_expert else whole
            factor = 1.0 / whole.size if self.averages else 1.0
            grads[index] = _reduced(grads[index], group, factor)

    def inplace_reduce_sp_grad(
        self, grads: list[Tensor], params: Sequence[Parameter] | None = None
    ) -> None:
        """Sum over tensor parallel ranks of what each computed from its part of the sequence."""
        if not self.sequence_parallel:
            return
        group = parallel_state.get_tensor_model_parallel_group()
        for index, param in enumerate(self.params if params is None else params):
            if _is_partial(param):
                grads[index] = _reduced(grads[index], group, 1.0)

    def inplace_reduce_tied_grad(
        self, grads: list[Tensor], params: Sequence[Parameter] | None = None
    ) -> None:
        """Sum over the first and the last stage of an embedding that both hold."""
        group = parallel_state.get_embedding_group()
        for index, param in enumerate(self.params if params is None else params):
            if group.rank >= 0 and shard_of(param).is_tied:
                grads[index] = _reduced(grads[index], group, 1.0)

    def inplace_reduce_grad(
        self, grads: list[Tensor], params: Sequence[Parameter] | None = None
    ) -> None:
        """All three, one after the other."""
        self.inplace_reduce_dp_grad(grads, params)
        self.inplace_reduce_sp_grad(grads, params)
        self.inplace_reduce_tied_grad(grads, params)

    def reduce_is_finite(self, is_finite: Any) -> Any:
        """Whether it is true on every rank that holds a part of the model.

        Args:
            is_finite: a bool or a tensor of one; the answer is of the same kind.
        """
        value = bool(is_finite.asnumpy()) if isinstance(is_finite, Tensor) else bool(is_finite)
        group = parallel_state.get_model_parallel_group()
        if group.size > 1:
            flag = memory.from_numpy(np.array([value], np.float32))
            comm.all_reduce(flag, op=ReduceOp.MIN, group=group)
            value = bool(memory.as_numpy(flag)[0])
        return Tensor(value) if isinstance(is_finite, Tensor) else value

    def reduce_overflow(self, overflow: Any) -> Any:
        """Whether it is true on any rank that holds a part of the model."""
        value = bool(overflow.asnumpy()) if isinstance(overflow, Tensor) else bool(overflow)
        found = not self.reduce_is_finite(not value)
        return Tensor(found) if isinstance(overflow, Tensor) else found


def _is_partial(param: Parameter) -> bool:
    """Ours say so; of others the name has to tell."""
    if getattr(param, "shard", None) is not None:
        return shard_of(param).partial_gradient
    return any(part in param.name for part in SEQUENCE_PARALLEL_NAMES)


def _reduced(grad: Tensor, group: Group, factor: float) -> Tensor:
    """A new tensor: the sum over the ranks times a factor."""
    values = memory.contiguous(grad)
    if group.size > 1:
        total = memory.empty(values.shape, values.dtype)
        memory.copy_(total, values)
        comm.all_reduce(total, group=group)
        values = total
    return values if factor == 1.0 else values * factor
