# SPDX-License-Identifier: Apache-2.0
"""Whole sequences on every rank that shares them, for layers that read tokens one after the other.

Every rank computes the same, and keeps the results of its own tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.core.context_parallel.blocks import rows_of
from mindspeed_ms.core.context_parallel.layout import ContextParallel
from mindspeed_ms.plan.sequence_slices import stretches


def _order(context: ContextParallel, length: int) -> np.ndarray:
    """Place in the sequence of every token, in the order of the ranks."""
    return np.concatenate([context.positions(length, rank) for rank in range(context.size)])


def _rows(tensor: Tensor, index: np.ndarray) -> Tensor:
    """``tensor[index]`` of a contiguous tensor, put together from runs."""
    runs = [index[part] for part in stretches(index)]
    parts = [rows_of(tensor, slice(int(run[0]), int(run[-1]) + 1)) for run in runs]
    return parts[0] if len(parts) == 1 else memory.concatenated(parts)


class _Whole(autograd.Function):
    """The tokens of all ranks in order; gradients of a token are summed at its rank, in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, context: ContextParallel) -> Tensor:
        ctx.context, ctx.dtype = context, x.dtype
        shape = (context.size * x.shape[0], *x.shape[1:])
        every = memory.empty(shape, x.dtype)
        comm.all_gather_into_tensor(every, memory.contiguous(x), group=context.group)
        return _rows(every, np.argsort(_order(context, shape[0])))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        context = ctx.context
        grad = memory.contiguous(ops.cast(memory.contiguous(grad), memory.dtype_of("float32")))
        whole = memory.contiguous(_rows(grad, _order(context, grad.shape[0])))
        own = memory.empty((grad.shape[0] // context.size, *grad.shape[1:]))
        comm.reduce_scatter_tensor(own, whole, group=context.group)
        return ops.cast(own, ctx.dtype), None


class _Own(autograd.Function):
    """The tokens of this rank; the others get no gradient from it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, context: ContextParallel) -> Tensor:
        ctx.places, ctx.length = context.positions(x.shape[0]), x.shape[0]
        return memory.contiguous(_rows(memory.contiguous(x), ctx.places))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = memory.contiguous(grad)
        whole = memory.zeros((ctx.length, *grad.shape[1:]), grad.dtype)
        for part in stretches(ctx.places):
            first = int(ctx.places[part.start])
            place = slice(first, first + part.stop - part.start)
            memory.copy_(rows_of(whole, place), rows_of(grad, part))
        return whole, None


def whole_sequence(x: Tensor, context: ContextParallel) -> Tensor:
    """[s, ...] of each rank -> [S, ...] in the order of the sequence.

    Parallelism: collective over the ranks that share sequences, in forward and in backward.
    """
    return _Whole.apply(x, context)


def own_tokens(x: Tensor, context: ContextParallel) -> Tensor:
    """[S, ...] -> [s, ...] of this rank."""
    return _Own.apply(x, context)
