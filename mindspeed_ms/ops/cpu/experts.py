# SPDX-License-Identifier: Apache-2.0
"""Products per expert on the rows' own memory; scores and choices are small and stay in NumPy.

Each group is one call of the native product on a slice of the buffers: no tensor is made per
expert, and empty groups cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mindspore import Tensor

from mindspeed_ms.backend import memory
from mindspeed_ms.ops.cpu.library import STORAGE, native
from mindspeed_ms.ops.cpu.linear import product_of
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


def _per_group(
    rows: Tensor,
    columns: int,
    weights: Sequence[Tensor],
    counts: Sequence[int],
    product: Callable[[int, int, int, int, int], None],
) -> Tensor:
    """[tokens, columns], filled by ``product(code, rows, weight, result, count)`` per group."""
    rows = rows.contiguous()
    result = memory.empty((rows.shape[0], columns), rows.dtype)
    if not sum(counts):
        return result
    source, target, code = rows.data_ptr(), result.data_ptr(), STORAGE[rows.dtype]
    source_bytes, target_bytes = _row_bytes(rows), _row_bytes(result)
    for weight, count in zip(weights, counts, strict=True):
        if count:
            kept = weight.contiguous()  # by name: a copy must live until the product is done
            product(code, source, kept.data_ptr(), target, count)
            source += count * source_bytes
            target += count * target_bytes
    return result


def grouped_linear_forward(x: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See ``ops.grouped_linear_forward``."""
    out, width = weights[0].shape

    def product(code: int, x: int, weight: int, y: int, count: int) -> None:
        product_of(count)(code, x, weight, None, y, count, width, out)

    return _per_group(x, out, weights, counts, product)


def grouped_linear_dgrad(dy: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See ``ops.grouped_linear_dgrad``."""
    out, width = weights[0].shape

    def product(code: int, dy: int, weight: int, dx: int, count: int) -> None:
        native.linear_dgrad(code, dy, weight, dx, count, width, out)

    return _per_group(dy, width, weights, counts, product)


def grouped_linear_wgrad_accumulate(
    dy: Tensor, x: Tensor, main_grads: Sequence[Tensor], counts: Sequence[int]
) -> None:
    """See ``ops.grouped_linear_wgrad_accumulate``."""
    if not sum(counts):
        return
    dy, x = dy.contiguous(), x.contiguous()
    grad, source, code = dy.data_ptr(), x.data_ptr(), STORAGE[dy.dtype]
    grad_bytes, source_bytes = _row_bytes(dy), _row_bytes(x)
    product = native.linear_wgrad_accumulate
    for main_grad, count in zip(main_grads, counts, strict=True):
        if count:
            product(code, grad, source, main_grad.data_ptr(), count, x.shape[1], dy.shape[1])
            grad += count * grad_bytes
            source += count * source_bytes
