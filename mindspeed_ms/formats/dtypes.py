# SPDX-License-Identifier: Apache-2.0
"""Types of stored numbers: names in files, widths, and conversion without a framework."""

from __future__ import annotations

import numpy as np

NUMPY = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F8_E4M3": np.dtype(np.uint8),
}
"""safetensors' name -> NumPy type of the same layout; bfloat16 and fp8 are their raw bits."""

BLOCK = (128, 128)
"""Rows and columns copied at a time between matrices of which one lies transposed."""

FLOATS = ("F16", "BF16", "F32", "F64")
WORDS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""safetensors' name of a type of weights -> torch's and the configuration's."""


def width(dtype: str) -> int:
    """Bytes of one number."""
    return NUMPY[dtype].itemsize


def name_of(array: np.ndarray) -> str:
    """Name of an array's type; arrays of raw bfloat16 bits must be named by the caller.

    Raises:
        ValueError: a type that files do not hold.
    """
    for name, dtype in NUMPY.items():
        if dtype == array.dtype and name != "BF16":
            return name
    raise ValueError(
        f"an array of {array.dtype} cannot be stored; use one of {', '.join(sorted(NUMPY))}"
    )


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """``target[...] = source``; in blocks that the cache holds where one lies transposed."""
    by_columns = {array.strides[0] < array.strides[-1] for array in (target, source) if array.ndim}
    if target.ndim != 2 or len(by_columns) == 1:
        target[...] = source
        return
    rows, columns = BLOCK
    for row in range(0, target.shape[0], rows):
        for column in range(0, target.shape[1], columns):
            block = (slice(row, row + rows), slice(column, column + columns))
            target[block] = source[block]


_INFINITE = {"F16": 0x7C00, "BF16": 0x7F80}
"""Bits of infinity, without the sign: those of NaN are above."""

_CHUNK = 1 << 15
"""Numbers looked at in one go, so that what is computed of them stays in the cache."""


def count_not_finite(flat: np.ndarray, dtype: str) -> int:
    """How many numbers of a flat array are NaN or infinite; none of whole numbers are."""
    if dtype not in FLOATS:
        return 0
    parts = (flat[first : first + _CHUNK] for first in range(0, flat.size, _CHUNK))
    if dtype not in _INFINITE:
        return sum(part.size - int(np.count_nonzero(np.isfinite(part))) for part in parts)
    count = 0
    for part in parts:
        bits = part.view(np.uint16) & np.uint16(0x7FFF)
        if bits.max(initial=0) >= _INFINITE[dtype]:
            count += int(np.count_nonzero(bits >= _INFINITE[dtype]))
    return count


def count_negative(flat: np.ndarray, dtype: str) -> int:
    """How many numbers of a flat array are below zero; of types that are no floats none is."""
    if dtype not in FLOATS:
        return 0
    is_bf16 = dtype == "BF16"  # as bits: -infinity is 0xFF80, and 0x8000 is a zero
    count = 0
    for first in range(0, flat.size, _CHUNK):
        part = flat[first : first + _CHUNK]
        if is_bf16:
            bits = part.view(np.uint16)
            count += int(np.count_nonzero((bits > 0x8000) & (bits <= 0xFF80)))
        else:
            count += int(np.count_nonzero(part < 0))
    return count


def convert(array: np.ndarray, source: str, target: str) -> np.ndarray:
    """The array in another type, rounded to the nearest, ties to even; itself if equal.

    Raises:
        ValueError: a conversion between a float and another kind.
    """
    if source == target:
        return array
    if source not in FLOATS or target not in FLOATS:
        raise ValueError(
            f"cannot convert {source} to {target}; only {', '.join(FLOATS)} convert into each other"
        )
    if source == "BF16":
        wide = (array.astype(np.uint32) << 16).view(np.float32)
        return convert(wide, "F32", target)
    if target == "BF16":
        return _to_bfloat16(array.astype(np.float32, copy=False))
    return array.astype(NUMPY[target])


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    nan = np.isnan(values)
    if nan.any():
        rounded = np.where(nan, (bits >> 16) | np.uint32(0x40), rounded)
    return rounded.astype(np.uint16).reshape(values.shape)
