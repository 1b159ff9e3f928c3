# SPDX-License-Identifier: Apache-2.0
"""Between tensors and the fp32 arrays the definitions compute on."""

from __future__ import annotations

import ctypes
import math

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import device, memory
from mindspeed_ms.backend.numpy_types import bfloat16_to_float32

Array = np.ndarray


def wide(tensor: Tensor) -> Array:
    """The elements as an fp32 array; read only: for an fp32 CPU tensor it is the tensor's memory.

    Keep the tensor alive as long as the array.
    """
    array = memory.as_numpy(memory.contiguous(tensor))
    if tensor.dtype == ms.bfloat16:
        return bfloat16_to_float32(array)
    return array if array.dtype == np.float32 else array.astype(np.float32)


def tensor_of(array: Array, dtype: ms.Type = ms.float32) -> Tensor:
    """New tensor of a storage type from an fp32 array, rounded to nearest even."""
    if dtype == ms.bfloat16:
        tensor = memory.empty(array.shape, dtype)
        store(tensor, array)
        return tensor
    stored = np.ascontiguousarray(array, dtype=memory.numpy_dtype(dtype)).reshape(array.shape)
    return Tensor(stored) if device.is_ascend() else memory.from_numpy(stored)


def store(tensor: Tensor, array: Array) -> None:
    """Write an fp32 array into the storage of a contiguous tensor of any floating type.

    On CPU through the address: ``asnumpy`` of a view with an offset is a copy.
    """
    if device.is_ascend():
        tensor.copy_(Tensor(np.ascontiguousarray(array)).astype(tensor.dtype).view(tensor.shape))
        return
    values = np.ascontiguousarray(array)
    if tensor.dtype == ms.bfloat16:
        values = bfloat16_bits(values)
    with np.errstate(over="ignore"):
        values = values.astype(memory.numpy_dtype(tensor.dtype), copy=False)
    ctypes.memmove(memory.address(tensor), values.ctypes.data, values.nbytes)


def bfloat16_bits(array: Array) -> Array:
    """Upper 16 bits of fp32 numbers after rounding to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def sum_rows(array: Array) -> Array:
    """Sum over all dimensions but the last, accumulated in fp64."""
    return rows_of(array).sum(axis=0, dtype=np.float64).astype(np.float32)


def rows_of(array: Array) -> Array:
    """[..., last] -> [rows, last], also for empty arrays."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
