# SPDX-License-Identifier: Apache-2.0
"""Products per expert and sums of their rows; scores and choices are small and stay in NumPy.

All groups are one call of the native library on slices of the buffers: no tensor is made per
expert, and empty groups cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.cpu.library import STORAGE, native
from mindspeed_ms.ops.cpu.linear import product_of
from mindspeed_ms.ops.portable.experts import (
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

Context = Any


def _addresses(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.array([tensor.data_ptr() for tensor in tensors], np.uint64)


def grouped_linear_forward(x: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See ``ops.grouped_linear_forward``."""
    if autograd.is_inference_mode_enabled():
        return _rows_by_group(x, weights, counts)
    return _grouped_product(native.grouped_linear_forward, x, weights, counts, 0)


def grouped_linear_dgrad(dy: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See ``ops.grouped_linear_dgrad``."""
    return _grouped_product(native.grouped_linear_dgrad, dy, weights, counts, 1)


def _grouped_product(
    product: Callable[..., None],
    rows: Tensor,
    weights: Sequence[Tensor],
    counts: Sequence[int],
    dim: int,
) -> Tensor:
    """[N, weights' ``dim``] of one call for all groups."""
    rows = memory.contiguous(rows)
    weights = [memory.contiguous(weight) for weight in weights]  # copies live until it is done
    out, width = weights[0].shape
    addresses, sizes = _addresses(weights), np.array(counts, np.int64)
    result = memory.empty((rows.shape[0], weights[0].shape[dim]), rows.dtype)
    product(
        STORAGE[rows.dtype],
        rows.data_ptr(),
        addresses.ctypes.data,
        result.data_ptr(),
        sizes.ctypes.data,
        len(sizes),
        rows.shape[0],
        width,
        out,
    )
    return result


def _rows_by_group(x: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """A call per group: few rows are multiplied in another way."""
    x = memory.contiguous(x)
    out, width = weights[0].shape
    y = memory.empty((x.shape[0], out), x.dtype)
    size, code = memory.numpy_dtype(x.dtype).itemsize, STORAGE[x.dtype]
    source, target = x.data_ptr(), y.data_ptr()
    for weight, count in zip(weights, counts, strict=True):
        if count:
            kept = memory.contiguous(weight)  # by name: a copy must live until the product is done
            product_of(count)(code, source, kept.data_ptr(), None, target, count, width, out)
            source += count * width * size
            target += count * out * size
    return y


def grouped_linear_wgrad_accumulate(
    dy: Tensor, x: Tensor, main_grads: Sequence[Tensor], counts: Sequence[int]
) -> None:
    """See ``ops.grouped_linear_wgrad_accumulate``."""
    dy, x = memory.contiguous(dy), memory.contiguous(x)
    addresses, sizes = _addresses(main_grads), np.array(counts, np.int64)
    native.grouped_linear_wgrad_accumulate(
        STORAGE[dy.dtype],
        dy.data_ptr(),
        x.data_ptr(),
        addresses.ctypes.data,
        sizes.ctypes.data,
        len(sizes),
        dy.shape[0],
        x.shape[1],
        dy.shape[1],
    )


class _CombineRows(autograd.Function):
    """See ``ops.portable.experts``: the same sums, in one pass."""

    @staticmethod
    def forward(ctx: Context, rows: Tensor, probs: Tensor, places: Tensor) -> Tensor:
        rows, probs, places = (memory.contiguous(one) for one in (rows, probs, places))
        _check_places(places, rows.shape[0])
        ctx.save_for_backward(rows, probs, places)
        y = memory.empty((probs.shape[0], rows.shape[1]), rows.dtype)
        native.combine_rows_forward(
            STORAGE[rows.dtype],
            rows.data_ptr(),
            probs.data_ptr(),
            places.data_ptr(),
            y.data_ptr(),
            *probs.shape,
            rows.shape[1],
        )
        return y

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, probs, places = ctx.saved_tensors
        dy = memory.contiguous(dy)
        drows, dprobs = memory.empty(rows.shape, rows.dtype), memory.empty(probs.shape)
        native.combine_rows_backward(
            STORAGE[rows.dtype],
            rows.data_ptr(),
            probs.data_ptr(),
            places.data_ptr(),
            dy.data_ptr(),
            drows.data_ptr(),
            dprobs.data_ptr(),
            *probs.shape,
            rows.shape[1],
            rows.shape[0],
        )
        return drows, dprobs, None


def combine_rows(rows: Tensor, probs: Tensor, places: Tensor) -> Tensor:
    """See ``ops.combine_rows``."""
    return _CombineRows.apply(rows, probs, places)


def _check_places(places: Tensor, rows: int) -> None:
    """The library must not read beyond the rows."""
    last = memory.as_numpy(places).max(initial=-1)
    if last >= rows:
        raise IndexError(f"combine_rows: place {last} of {rows} rows; they count from 0")
