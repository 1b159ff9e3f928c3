"""Products per expert on the rows' own memory; scores and choices are small and stay in NumPy.

Each group is one call of the native product on a slice of the buffers: no tensor is made per
expert, and empty groups cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor

from mindspeed_ms.backend import memory
from mindspeed_ms.ops.cpu.library import STORAGE, library
from mindspeed_ms.ops.portable.experts import (
    combine_rows,
    largest_columns,
    normalized_rows,
    product_fp64,
    random_normal,
    random_uniform,
    router_scores,
    squared_logsumexp,
    take_columns,
    weighted_total,
)

__all__ = [
    "combine_rows",
    "grouped_linear_dgrad",
    "grouped_linear_forward",
    "grouped_linear_wgrad_accumulate",
    "largest_columns",
    "normalized_rows",
    "product_fp64",
    "random_normal",
    "random_uniform",
    "router_scores",
    "squared_logsumexp",
    "take_columns",
    "weighted_total",
]


def _row_bytes(t: Tensor) -> int:
    return t.shape[1] * memory.numpy_dtype(t.dtype).itemsize


def grouped_linear_forward(x: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See ``ops.grouped_linear_forward``."""
    x = memory.contiguous(x)
    out, width = weights[0].shape
    y = memory.empty((x.shape[0], out), x.dtype)
    if not sum(counts):
        return y
    source, target, code = x.data_ptr(), y.data_ptr(), STORAGE[x.dtype]
    source_bytes, target_bytes = _row_bytes(x), _row_bytes(y)
    product = library().linear_forward
    for weight, count in zip(weights, counts, strict=True):
        if count:
            kept = memory.contiguous(weight)
            product(code, source, kept.data_ptr(), None, target, count, width, out)
            source += count * source_bytes
            target += count * target_bytes
    return y


def grouped_linear_dgrad(dy: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See ``ops.grouped_linear_dgrad``."""
    dy = memory.contiguous(dy)
    out, width = weights[0].shape
    dx = memory.empty((dy.shape[0], width), dy.dtype)
    if not sum(counts):
        return dx
    source, target, code = dy.data_ptr(), dx.data_ptr(), STORAGE[dy.dtype]
    source_bytes, target_bytes = _row_bytes(dy), _row_bytes(dx)
    product = library().linear_dgrad
    for weight, count in zip(weights, counts, strict=True):
        if count:
            kept = memory.contiguous(weight)
            product(code, source, kept.data_ptr(), target, count, width, out)
            source += count * source_bytes
            target += count * target_bytes
    return dx


def grouped_linear_wgrad_accumulate(
    dy: Tensor, x: Tensor, main_grads: Sequence[Tensor], counts: Sequence[int]
) -> None:
    """See ``ops.grouped_linear_wgrad_accumulate``."""
    if not sum(counts):
        return
    dy, x = memory.contiguous(dy), memory.contiguous(x)
    grad, source, code = dy.data_ptr(), x.data_ptr(), STORAGE[dy.dtype]
    grad_bytes, source_bytes = _row_bytes(dy), _row_bytes(x)
    product = library().linear_wgrad_accumulate
    for main_grad, count in zip(main_grads, counts, strict=True):
        if count:
            product(code, grad, source, main_grad.data_ptr(), count, x.shape[1], dy.shape[1])
            grad += count * grad_bytes
            source += count * source_bytes
