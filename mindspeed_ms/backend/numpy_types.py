# SPDX-License-Identifier: Apache-2.0
"""MindSpore's types and the layout NumPy gives to their elements."""

from __future__ import annotations

from typing import overload

import numpy as np
from mindspore.common import dtype as mstype
from mindspore.common.np_dtype import bfloat16, np_dtype_valid


class _Layouts(dict[mstype.Type, np.dtype]):
    """A table whose missing entries say what is wrong."""

    def __missing__(self, dtype: mstype.Type) -> np.dtype:
        names = ", ".join(str(known) for known in self)
        raise ValueError(f"dtype {dtype} has no NumPy layout; use one of {names}")


NUMPY_OF = _Layouts(
    {
        mstype.float32: np.dtype(np.float32),
        mstype.float16: np.dtype(np.float16),
        mstype.float64: np.dtype(np.float64),
        mstype.bfloat16: np.dtype(np.uint16),
        mstype.int64: np.dtype(np.int64),
        mstype.int32: np.dtype(np.int32),
        mstype.int16: np.dtype(np.int16),
        mstype.int8: np.dtype(np.int8),
        mstype.uint8: np.dtype(np.uint8),
        mstype.uint16: np.dtype(np.uint16),
        mstype.bool_: np.dtype(np.bool_),
    }
)
"""bfloat16 appears as its 16 raw bits."""

ALLOCATED = NUMPY_OF | ({mstype.bfloat16: np.dtype(bfloat16)} if np_dtype_valid(True) else {})
"""What new tensors are made of: MindSpore's own bfloat16 of NumPy, where this NumPy has it."""

_BY_NAME = {
    "float32": mstype.float32,
    "bfloat16": mstype.bfloat16,
    "float16": mstype.float16,
}


@overload
def dtype_of(dtype: str | mstype.Type) -> mstype.Type: ...


@overload
def dtype_of(dtype: None) -> None: ...


def dtype_of(dtype: str | mstype.Type | None) -> mstype.Type | None:
    """MindSpore's type for a name of the configuration; a type, or None, is returned as it is."""
    return _BY_NAME[dtype] if isinstance(dtype, str) else dtype


def numpy_dtype(dtype: mstype.Type) -> np.dtype:
    """NumPy type with the layout of a MindSpore type (bfloat16: its 16 raw bits as uint16).

    Raises:
        ValueError: a type that has no NumPy layout.
    """
    return NUMPY_OF[dtype]


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Values of raw bfloat16 bits (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Raw bfloat16 bits (uint16) of float32 values, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
