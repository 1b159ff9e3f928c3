# SPDX-License-Identifier: Apache-2.0
"""Small exchanges between the ranks that share a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, mint
from numpy.typing import NDArray

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core.context_parallel.layout import ContextParallel


class _SumOverSequence(autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.size = group.size
        total = memory.empty(tensor.shape, tensor.dtype)
        memory.copy_(total, tensor)
        comm.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return mint.mul(grad, float(ctx.size)), None


def sum_over_sequence(tensor: Tensor, group: Group) -> Tensor:
    """Sum of what the ranks computed from their tokens, for a loss.

    Every rank returns the whole and goes back with its own part only, times the number of ranks:
    gradients of parameters are averaged over data x context parallel ranks, and the parts of one
    sequence have to add up.

    Parallelism: collective over the group in forward.
    """
    return tensor if group.size == 1 else _SumOverSequence.apply(tensor, group)


def count_over_sequence(weights: Tensor, group: Group) -> tuple[float, float]:
    """Sum of some weights of this rank's tokens, and of all ranks'.

    Parallelism: collective over the group.
    """
    own = float(memory.as_numpy(memory.contiguous(weights)).sum(dtype=np.float64))
    whole = memory.from_numpy(np.array([own], np.float32))
    if group.size > 1:
        comm.all_reduce(whole, group=group)
    return own, float(memory.as_numpy(whole)[0])


def gather_tokens(tokens: Tensor, context: ContextParallel) -> NDArray[np.int32]:
    """Whole sequences [b, S] from this rank's tokens [b, s], without a gradient.

    Parallelism: collective over the context parallel group.
    """
    batch, part = tokens.shape
    own = np.ascontiguousarray(memory.as_numpy(memory.contiguous(tokens)), dtype=np.int32)
    gathered = memory.empty((context.size * batch, part), memory.from_numpy(own).dtype)
    comm.all_gather_into_tensor(gathered, memory.from_numpy(own), group=context.group)
    parts = memory.as_numpy(gathered).reshape(context.size, batch, part)
    whole = np.empty((batch, context.size * part), np.int32)
    for rank, tokens_of_rank in enumerate(parts):
        whole[:, context.positions(whole.shape[1], rank)] = tokens_of_rank
    return whole
