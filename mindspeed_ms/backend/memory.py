"""Tensors and the memory behind them.

On CPU a MindSpore tensor and a NumPy array can share storage. Everything that must write in place
(communication, gradient accumulation, the optimizer, checkpoint loading) goes through these
functions, because several of MindSpore's own in-place operators do nothing on CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint
from mindspore.common import dtype as mstype
from mindspore.common.np_dtype import bfloat16, np_dtype_valid

from mindspeed_ms.backend import device

_NUMPY_OF = {
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

# What `empty` allocates: MindSpore's own bfloat16 of NumPy, where this NumPy has room for it.
_ALLOCATED = _NUMPY_OF | ({mstype.bfloat16: np.dtype(bfloat16)} if np_dtype_valid(True) else {})


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
    if dtype not in _NUMPY_OF:
        names = ", ".join(str(known) for known in _NUMPY_OF)
        raise ValueError(f"dtype {dtype} has no NumPy layout; use one of {names}")
    return _NUMPY_OF[dtype]


def is_contiguous(tensor: Tensor) -> bool:
    """True when the elements lie in row-major order without gaps."""
    return tensor.is_contiguous()


def contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself if it is contiguous, else a contiguous copy."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def transposed(tensor: Tensor) -> Tensor:
    """Contiguous copy with the first two dimensions exchanged; not recorded on the tape.

    For ids and masks. The stock operator takes milliseconds for a few kilobytes on CPU.
    """
    if device.is_ascend() or tensor.dtype == mstype.bfloat16:
        return contiguous(tensor.swapaxes(0, 1))
    array = as_numpy(contiguous(tensor))
    return from_numpy(np.ascontiguousarray(array.swapaxes(0, 1)))


def in_dtype(tensor: Tensor, dtype: mstype.Type) -> Tensor:
    """As ``autograd.cast``, but not recorded on the tape: for ids, masks and statistics."""
    if tensor.dtype == dtype:
        return tensor
    if device.is_ascend() or mstype.bfloat16 in (tensor.dtype, dtype):
        return tensor.astype(dtype)
    return from_numpy(as_numpy(contiguous(tensor)).astype(numpy_dtype(dtype)))


def address(tensor: Tensor) -> int:
    """Address of the first element; waits for a pending computation of the tensor."""
    return tensor.data_ptr()


def num_elements(tensor: Tensor) -> int:
    """Number of elements."""
    return math.prod(tensor.shape)


def num_bytes(tensor: Tensor) -> int:
    """Bytes of the elements."""
    return math.prod(tensor.shape) * numpy_dtype(tensor.dtype).itemsize


def as_numpy(tensor: Tensor) -> np.ndarray:
    """NumPy view of a contiguous CPU tensor: writable, nothing is copied, the tensor stays alive.

    bfloat16 appears as uint16 bits. On Ascend the result is a copy on the host, for reading only.

    Raises:
        ValueError: the tensor is not contiguous, so no dense array can alias it.
    """
    if not tensor.is_contiguous():
        raise ValueError(
            f"tensor of shape {tuple(tensor.shape)} is not contiguous; an in-place view needs "
            "row-major storage: pass contiguous(tensor)"
        )
    dtype = numpy_dtype(tensor.dtype)
    if device.is_ascend():
        array = tensor.asnumpy()
        return array if array.dtype == dtype else array.view(dtype)
    if num_bytes(tensor) == 0:
        return np.empty(tuple(tensor.shape), dtype)
    # By address: asnumpy() of a view that begins inside its base returns a copy.
    return np.asarray(_Lender(tensor, dtype))


def flat_view(tensor: Tensor) -> np.ndarray:
    """``as_numpy`` in one dimension."""
    return as_numpy(tensor).reshape(-1)


class _Lender:
    """What NumPy asks an object that lends it memory; the array keeps it, and so the tensor."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, tensor: Tensor, dtype: np.dtype) -> None:
        self.owner = tensor
        self.__array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "typestr": dtype.str,
            "version": 3,
        }


def from_numpy(array: np.ndarray) -> Tensor:
    """Tensor on the array's own memory (CPU); the tensor keeps the array alive."""
    return Tensor.from_numpy(array)


def empty(shape: Sequence[int], dtype: mstype.Type = mstype.float32) -> Tensor:
    """Tensor with undefined contents."""
    if device.is_ascend() or (dtype == mstype.bfloat16 and _ALLOCATED[dtype].kind == "u"):
        return mint.empty(tuple(shape), dtype=dtype)
    return Tensor.from_numpy(np.empty(tuple(shape), _ALLOCATED[dtype]))


def zeros(shape: Sequence[int], dtype: mstype.Type = mstype.float32) -> Tensor:
    """Tensor of zeros with storage of its own."""
    if device.is_ascend():
        return mint.zeros(tuple(shape), dtype=dtype)
    result = empty(shape, dtype)
    as_numpy(result)[...] = 0
    return result


def full(shape: Sequence[int], value: float, dtype: mstype.Type = mstype.float32) -> Tensor:
    """Tensor of one value (float32 or float16) with storage of its own."""
    if device.is_ascend():
        return mint.full(tuple(shape), value, dtype=dtype)
    result = empty(shape, dtype)
    as_numpy(result)[...] = value
    return result


def copy_(dst: Tensor, src: Tensor) -> None:
    """Copy the elements of ``src`` into the storage of ``dst`` (same shape and type).

    Raises:
        ValueError: shapes or types differ.
    """
    if tuple(dst.shape) != tuple(src.shape) or dst.dtype != src.dtype:
        raise ValueError(
            f"cannot copy {tuple(src.shape)} {src.dtype} into {tuple(dst.shape)} {dst.dtype}; "
            "shapes and types must be equal"
        )
    if device.is_ascend():
        dst.copy_(src)
    else:
        as_numpy(dst)[...] = as_numpy(contiguous(src))


def copy_from_host(dst: Tensor, values: np.ndarray) -> None:
    """Copy host values (bfloat16 as its raw bits) into the storage of ``dst``, of equal size.

    Raises:
        ValueError: the values have another layout than the tensor.
    """
    if values.dtype != numpy_dtype(dst.dtype) or values.size != num_elements(dst):
        raise ValueError(
            f"cannot copy {values.size} values of {values.dtype} into a tensor of "
            f"{num_elements(dst)} elements of {dst.dtype}; sizes and layouts must be equal"
        )
    shaped = values.reshape(tuple(dst.shape))
    if not device.is_ascend():
        as_numpy(dst)[...] = shaped
    elif dst.dtype == mstype.bfloat16:
        wide = (shaped.astype(np.uint32) << 16).view(np.float32)  # exact, and back
        dst.copy_(Tensor(wide).astype(mstype.bfloat16))
    else:
        dst.copy_(Tensor(shaped))


def permuted(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Contiguous copy with the dimensions in another order; no graph is built."""
    if device.is_ascend():
        return mint.permute(tensor, tuple(dims)).contiguous()
    source = as_numpy(contiguous(tensor)).transpose(dims)
    result = empty(source.shape, tensor.dtype)
    as_numpy(result)[...] = source
    return result


def concatenated(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors one after the other in their first dimension; no graph is built."""
    if device.is_ascend():
        return mint.cat(list(tensors))
    first = tensors[0]
    rows = sum(tensor.shape[0] for tensor in tensors)
    result = empty((rows, *first.shape[1:]), first.dtype)
    # Not MindSpore's operator: on CPU each call of it keeps the memory of its argument `dim`.
    np.concatenate([as_numpy(contiguous(tensor)) for tensor in tensors], out=as_numpy(result))
    return result


def view_of(flat: Tensor, start: int, shape: Sequence[int]) -> Tensor:
    """View of ``prod(shape)`` elements of a one-dimensional tensor, beginning at ``start``."""
    return flat[start : start + math.prod(shape)].view(tuple(shape))


def set_data(parameter: ms.Parameter, storage: Tensor) -> None:
    """Make a parameter use ``storage`` (same shape and type) as its memory, without a copy."""
    parameter.set_(storage)


def zero_(tensor: Tensor) -> None:
    """Set all elements to 0, whatever they were: NaN times 0 would stay NaN."""
    if device.is_ascend():
        tensor.zero_()
    else:
        as_numpy(tensor)[...] = 0
