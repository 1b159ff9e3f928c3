# SPDX-License-Identifier: Apache-2.0
"""Tensors and the memory behind them.

On CPU a MindSpore tensor and a NumPy array can share storage. Everything that must write in place
(communication, gradient accumulation, the optimizer, checkpoint loading) goes through these
functions, because several of MindSpore's own in-place operators do nothing on CPU.

What depends on the device are methods of the one ``device`` has chosen: decided once, called
directly. ``base.Device`` describes them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import device
from mindspeed_ms.backend.numpy_types import NUMPY_OF, dtype_of, numpy_dtype

__all__ = [
    "address",
    "as_numpy",
    "concatenated",
    "contiguous",
    "copy_",
    "copy_from_host",
    "dtype_of",
    "empty",
    "flat_view",
    "from_numpy",
    "full",
    "in_dtype",
    "is_contiguous",
    "num_bytes",
    "num_elements",
    "numpy_dtype",
    "permuted",
    "set_data",
    "transposed",
    "view_of",
    "zero_",
    "zeros",
]

as_numpy = device.CURRENT.as_numpy
concatenated = device.CURRENT.concatenated
copy_ = device.CURRENT.copy_
copy_from_host = device.CURRENT.copy_from_host
empty = device.CURRENT.empty
full = device.CURRENT.full
in_dtype = device.CURRENT.in_dtype
permuted = device.CURRENT.permuted
transposed = device.CURRENT.transposed
zero_ = device.CURRENT.zero_
zeros = device.CURRENT.zeros

flat_view = functools.partial(as_numpy, flat=True)
"""``as_numpy`` in one dimension."""


def is_contiguous(tensor: Tensor) -> bool:
    """True when the elements lie in row-major order without gaps."""
    return tensor.is_contiguous()


def contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself if it is contiguous, else a contiguous copy.

    ``Tensor.contiguous`` also copies row-major tensors that begin inside their storage.
    """
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def address(tensor: Tensor) -> int:
    """Address of the first element; waits for a pending computation of the tensor."""
    return tensor.data_ptr()


def num_elements(tensor: Tensor) -> int:
    """Number of elements."""
    return tensor.size


def num_bytes(tensor: Tensor) -> int:
    """Bytes of the elements."""
    return tensor.size * NUMPY_OF[tensor.dtype].itemsize


def from_numpy(array: np.ndarray) -> Tensor:
    """Tensor on the array's own memory (CPU); the tensor keeps the array alive."""
    return Tensor.from_numpy(array)


def view_of(flat: Tensor, start: int, shape: Sequence[int]) -> Tensor:
    """View of ``prod(shape)`` elements of a one-dimensional tensor, beginning at ``start``."""
    return flat[start : start + math.prod(shape)].view(tuple(shape))


def set_data(parameter: ms.Parameter, storage: Tensor) -> None:
    """Make a parameter use ``storage`` (same shape and type) as its memory, without a copy."""
    parameter.set_(storage)
