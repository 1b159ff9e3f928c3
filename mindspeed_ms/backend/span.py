"""The memory of a CPU tensor as a flat NumPy array, views into other tensors included.

``Tensor.asnumpy`` shares memory only for a tensor that begins at the start of its storage; for a
view with an offset (a bucket's slice, a shard) it returns a copy, and what is written there is
lost. An array made from the address is right for both.
"""

from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype

_TYPE_CODES = {
    mstype.float32: "<f4",
    mstype.float16: "<f2",
    mstype.float64: "<f8",
    mstype.bfloat16: "<u2",
    mstype.int64: "<i8",
    mstype.int32: "<i4",
    mstype.int16: "<i2",
    mstype.int8: "|i1",
    mstype.uint8: "|u1",
    mstype.uint16: "<u2",
    mstype.bool_: "|b1",
}


class _Span:
    """What NumPy asks an object that lends it memory."""

    __slots__ = ("__array_interface__",)

    def __init__(self, address: int, count: int, code: str) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (count,),
            "typestr": code,
            "version": 3,
        }


def flat_view(tensor: Tensor) -> np.ndarray:
    """Writable one-dimensional array on the memory of a contiguous CPU tensor.

    It does not own the memory: keep the tensor as long as the array. bfloat16 appears as uint16.

    Raises:
        ValueError: the type has no NumPy layout.
    """
    code = _TYPE_CODES.get(tensor.dtype)
    if code is None:
        names = ", ".join(str(known) for known in _TYPE_CODES)
        raise ValueError(f"tensor of {tensor.dtype} has no NumPy layout; use one of {names}")
    count = math.prod(tensor.shape)
    if count == 0:
        return np.empty(0, np.dtype(code))
    return np.asarray(_Span(tensor.data_ptr(), count, code))
