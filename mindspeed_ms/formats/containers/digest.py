# SPDX-License-Identifier: Apache-2.0
"""A number that says what a tensor holds and where, the same for every layout.

The digest of a tensor is the sum over its elements of bits * (2 * position + 1), modulo 2**64: bits
are the element's own as an unsigned number, the position counts row by row in the global tensor.
Ranks add up their parts, so a tensor that was cut, moved and put together again keeps its digest.
Any single changed element, and any two elements that changed places, change it. It guards against
accidents, not against malice.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mindspeed_ms.formats.containers import native
from mindspeed_ms.plan.region import Span

_MODULUS = 1 << 64
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_CHUNK = 1 << 18

Sums = Callable[[np.ndarray], tuple[int, int, int]]
"""Matrix of unsigned numbers -> sums of bits, of column * bits, of row * bits."""


def digest_part(flat: np.ndarray, span: Span, shape: tuple[int, ...]) -> int:
    """What a span adds to the digest of a tensor.

    Args:
        flat: the span's elements, one-dimensional and contiguous.
        span: where they belong.
        shape: of the global tensor.
    """
    bits = flat.view(_UNSIGNED[flat.dtype.itemsize])
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    sums = sums_function()
    total = 0
    for block in span.blocks():
        size = block.memory[1]
        box = bits[block.flat : block.flat + math.prod(size)].reshape(size)
        start, extent = block.local
        part = box[tuple(slice(s, s + e) for s, e in zip(start, extent, strict=True))]
        total += _of_block(part, block.globally, strides, sums)
    return total % _MODULUS


def _of_block(part: np.ndarray, first: tuple[int, ...], strides: list[int], sums: Sums) -> int:
    base = sum(index * stride for index, stride in zip(first, strides, strict=True))
    if part.ndim < 2:
        plain, by_column, _ = sums(part.reshape(1, -1))
        return (2 * base + 1) * plain + 2 * by_column
    total = 0
    for lead in itertools.product(*(range(extent) for extent in part.shape[:-2])):
        offset = base + sum(i * s for i, s in zip(lead, strides[:-2], strict=True))
        plain, by_column, by_row = sums(part[lead])
        total += (2 * offset + 1) * plain + 2 * by_column + 2 * strides[-2] * by_row
    return total


def sums_by_numpy(matrix: np.ndarray) -> tuple[int, int, int]:
    """The sums, in cache-sized parts."""
    rows, columns = matrix.shape
    step = max(1, _CHUNK // max(1, columns))
    per_column = np.zeros(columns, np.uint64)
    plain = by_row = 0
    for first in range(0, rows, step):
        wide = matrix[first : first + step].astype(np.uint64)
        per_row = wide.sum(axis=1)
        per_column += wide.sum(axis=0)
        numbers = np.arange(first, first + len(per_row), dtype=np.uint64)
        plain += int(per_row.sum())
        by_row += int((per_row * numbers).sum())
    by_column = int((per_column * np.arange(columns, dtype=np.uint64)).sum())
    return plain % _MODULUS, by_column, by_row % _MODULUS


class _NativeSums:
    """The compiled function."""

    def __init__(self, function: Any) -> None:
        self._function = function
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        self._function.argtypes = [pointer, ctypes.c_int32, long, long, long, pointer]
        self._function.restype = None

    def __call__(self, matrix: np.ndarray) -> tuple[int, int, int]:
        width = matrix.itemsize
        if matrix.shape[1] > 1 and matrix.strides[1] != width:
            return sums_by_numpy(matrix)
        result = np.zeros(3, np.uint64)
        rows, columns = matrix.shape
        stride = matrix.strides[0] // width if rows > 1 else columns
        self._function(matrix.ctypes.data, width, rows, columns, stride, result.ctypes.data)
        return int(result[0]), int(result[1]), int(result[2])


@functools.lru_cache(maxsize=1)
def sums_function() -> Sums:
    """The compiled version, or NumPy's where it was not built."""
    compiled = native.function("digest_sums")
    return sums_by_numpy if compiled is None else _NativeSums(compiled)


def text_of(digest: int) -> str:
    """As it is written."""
    return f"{digest % _MODULUS:016x}"
