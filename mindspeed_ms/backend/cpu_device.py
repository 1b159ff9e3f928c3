# SPDX-License-Identifier: Apache-2.0
"""Tensors in the memory of the host, shared with NumPy."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Literal

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint
from mindspore.common import dtype as mstype

from mindspeed_ms.backend.numpy_types import ALLOCATED, NUMPY_OF


class CpuDevice:
    """``Device`` on CPU.

    Copies are NumPy's: several of MindSpore's own operators do nothing in place on CPU, some take
    milliseconds for a few kilobytes, and those with a scalar argument keep memory of every call.
    """

    name: Literal["cpu"] = "cpu"

    def initialize(self) -> None:
        """PyNative, operators launched one after the other."""
        ms.set_context(mode=ms.PYNATIVE_MODE)
        ms.runtime.launch_blocking()

    def set_deterministic(self) -> None:
        """Kernels always are: each result is summed in an order that no thread changes."""

    def synchronize(self) -> None:
        """Work is finished when a call returns."""

    def memory_stats(self) -> dict[str, int]:
        """Of the process: its largest resident set, and the one now."""
        with open("/proc/self/statm", "rb", buffering=0) as handle:
            current = int(handle.read().split()[1]) * resource.getpagesize()
        # The system counts the largest set only now and then.
        peak = max(current, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return {"peak": peak, "current": current, "reserved": current}

    def release_cached_memory(self) -> None:
        """The C library's; MindSpore keeps none."""
        ctypes.CDLL(None).malloc_trim(0)

    def empty(self, shape: Sequence[int], dtype: mstype.Type = mstype.float32) -> Tensor:
        """On a new array, which takes a tenth of the time of MindSpore's operator."""
        layout = ALLOCATED[dtype]
        if dtype == mstype.bfloat16 and layout.kind == "u":  # NumPy has no type to say bfloat16
            return mint.empty(tuple(shape), dtype=dtype)
        return Tensor.from_numpy(np.empty(shape, layout))

    def zeros(self, shape: Sequence[int], dtype: mstype.Type = mstype.float32) -> Tensor:
        """See ``Device``."""
        result = self.empty(shape, dtype)
        self.zero_(result)
        return result

    def full(
        self, shape: Sequence[int], value: float, dtype: mstype.Type = mstype.float32
    ) -> Tensor:
        """See ``Device``."""
        result = self.empty(shape, dtype)
        self.as_numpy(result)[...] = value
        return result

    def permuted(self, tensor: Tensor, dims: Sequence[int]) -> Tensor:
        """See ``Device``."""
        source = self.as_numpy(tensor.contiguous()).transpose(dims)
        result = self.empty(source.shape, tensor.dtype)
        self.as_numpy(result)[...] = source
        return result

    def transposed(self, tensor: Tensor) -> Tensor:
        """See ``Device``."""
        return self.permuted(tensor, (1, 0, *range(2, tensor.ndim)))

    def in_dtype(self, tensor: Tensor, dtype: mstype.Type) -> Tensor:
        """See ``Device``."""
        if tensor.dtype == dtype:
            return tensor
        if mstype.bfloat16 in (tensor.dtype, dtype):
            return tensor.astype(dtype)
        return Tensor.from_numpy(self.as_numpy(tensor.contiguous()).astype(NUMPY_OF[dtype]))

    def concatenated(self, tensors: Sequence[Tensor]) -> Tensor:
        """See ``Device``."""
        first = tensors[0]
        rows = sum(tensor.shape[0] for tensor in tensors)
        result = self.empty((rows, *first.shape[1:]), first.dtype)
        parts = [self.as_numpy(tensor.contiguous()) for tensor in tensors]
        np.concatenate(parts, out=self.as_numpy(result))
        return result

    def as_numpy(self, tensor: Tensor, flat: bool = False) -> np.ndarray:
        """See ``Device``."""
        if not tensor.is_contiguous():
            raise ValueError(
                f"tensor of shape {tuple(tensor.shape)} is not contiguous; an in-place view needs "
                "row-major storage: pass contiguous(tensor)"
            )
        dtype = NUMPY_OF[tensor.dtype]
        shape = (tensor.size,) if flat else tensor.shape
        if not tensor.size:
            return np.empty(shape, dtype)
        # By address, which also waits for operators in flight: asnumpy() of a view that begins
        # inside its base returns a copy, and what is written to that is lost. The array keeps the
        # object it was made from, and so the tensor.
        interface = {
            "data": (tensor.data_ptr(), False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }
        return np.asarray(SimpleNamespace(__array_interface__=interface, owner=tensor))

    def copy_(self, dst: Tensor, src: Tensor) -> None:
        """See ``Device``."""
        require_same_layout(dst, src)
        self.as_numpy(dst)[...] = self.as_numpy(src.contiguous())

    def copy_from_host(self, dst: Tensor, values: np.ndarray) -> None:
        """See ``Device``."""
        require_host_layout(dst, values)
        self.as_numpy(dst)[...] = values.reshape(dst.shape)

    def zero_(self, tensor: Tensor) -> None:
        """See ``Device``."""
        self.as_numpy(tensor)[...] = 0


def require_same_layout(dst: Tensor, src: Tensor) -> None:
    """Both tensors have one shape and type.

    Raises:
        ValueError: they differ.
    """
    if dst.shape != src.shape or dst.dtype != src.dtype:
        raise ValueError(
            f"cannot copy {tuple(src.shape)} {src.dtype} into {tuple(dst.shape)} {dst.dtype}; "
            "shapes and types must be equal"
        )


def require_host_layout(dst: Tensor, values: np.ndarray) -> None:
    """The values have the layout and number of the tensor's elements.

    Raises:
        ValueError: they have not.
    """
    if values.dtype != NUMPY_OF[dst.dtype] or values.size != dst.size:
        raise ValueError(
            f"cannot copy {values.size} values of {values.dtype} into a tensor of "
            f"{dst.size} elements of {dst.dtype}; sizes and layouts must be equal"
        )
