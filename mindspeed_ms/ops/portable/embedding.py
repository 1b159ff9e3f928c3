# SPDX-License-Identifier: Apache-2.0
"""Table lookup and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.portable.arrays import Array, rows_of, store, tensor_of, wide

Context = Any


def _local_rows(ids: Tensor, vocab_start: int, size: int) -> tuple[Array, Array]:
    """(row of each id, True where the id belongs to this partition), both flat."""
    rows = memory.as_numpy(memory.contiguous(ids)).astype(np.int64).reshape(-1) - vocab_start
    here = (rows >= 0) & (rows < size)
    return rows, here


def _summed(dy: Tensor, ids: Tensor, shape: tuple[int, int], vocab_start: int) -> Array:
    """Gradient of the table: the rows of dy added up per id."""
    rows, here = _local_rows(ids, vocab_start, shape[0])
    grad = np.zeros(shape, np.float32)
    order = np.flatnonzero(here)[np.argsort(rows[here], kind="stable")]
    if order.size:
        owners, starts = np.unique(rows[order], return_index=True)
        flat = rows_of(wide(dy))[order]
        grad[owners] = np.add.reduceat(flat, starts, axis=0)
    return grad


class _Embedding(autograd.Function):
    """``y = weight[ids]``; ``dweight[id] = sum of the dy rows of that id``."""

    @staticmethod
    def forward(ctx: Context, weight: Tensor, ids: Tensor, vocab_start: int) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.dtype, ctx.vocab_start = tuple(weight.shape), weight.dtype, vocab_start
        rows, here = _local_rows(ids, vocab_start, weight.shape[0])
        y = np.zeros((rows.size, weight.shape[1]), np.float32)
        y[here] = wide(weight)[rows[here]]
        return tensor_of(y.reshape(*ids.shape, weight.shape[1]), weight.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        return tensor_of(_summed(dy, ids, ctx.shape, ctx.vocab_start), ctx.dtype), None, None


def embedding(weight: Tensor, ids: Tensor, vocab_start: int) -> Tensor:
    """See ``ops.embedding``."""
    return _Embedding.apply(weight, ids, vocab_start)


def embedding_wgrad_accumulate(
    dy: Tensor, ids: Tensor, main_grad: Tensor, vocab_start: int
) -> None:
    """See ``ops.embedding_wgrad_accumulate``."""
    shape = main_grad.shape[0], main_grad.shape[1]
    store(main_grad, wide(main_grad) + _summed(dy, ids, shape, vocab_start))
