# SPDX-License-Identifier: Apache-2.0
"""Tensors in the memory of an Ascend NPU; not verified on hardware."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint
from mindspore.common import dtype as mstype

from mindspeed_ms.backend.cpu_device import require_host_layout, require_same_layout
from mindspeed_ms.backend.numpy_types import NUMPY_OF, bfloat16_to_float32


class AscendDevice:
    """``Device`` on an NPU: MindSpore's own operators."""

    name: Literal["ascend"] = "ascend"

    def initialize(self) -> None:
        """PyNative; operators are launched asynchronously."""
        ms.set_context(mode=ms.PYNATIVE_MODE)

    def set_deterministic(self) -> None:
        """See ``Device``."""
        ms.set_deterministic(True)

    def synchronize(self) -> None:
        """See ``Device``."""
        ms.runtime.synchronize()

    def memory_stats(self) -> dict[str, int]:
        """Of the device: the largest allocation, and what is allocated now."""
        return {
            "peak": int(ms.runtime.max_memory_allocated()),
            "current": int(ms.runtime.memory_allocated()),
            "reserved": int(ms.runtime.memory_reserved()),
        }

    def release_cached_memory(self) -> None:
        """See ``Device``."""
        ms.runtime.empty_cache()

    def empty(self, shape: Sequence[int], dtype: mstype.Type = mstype.float32) -> Tensor:
        """See ``Device``."""
        return mint.empty(tuple(shape), dtype=dtype)

    def zeros(self, shape: Sequence[int], dtype: mstype.Type = mstype.float32) -> Tensor:
        """See ``Device``."""
        return mint.zeros(tuple(shape), dtype=dtype)

    def full(
        self, shape: Sequence[int], value: float, dtype: mstype.Type = mstype.float32
    ) -> Tensor:
        """See ``Device``."""
        return mint.full(tuple(shape), value, dtype=dtype)

    def permuted(self, tensor: Tensor, dims: Sequence[int]) -> Tensor:
        """See ``Device``."""
        return mint.permute(tensor, tuple(dims)).contiguous()

    def transposed(self, tensor: Tensor) -> Tensor:
        """See ``Device``."""
        return tensor.swapaxes(0, 1).contiguous()

    def in_dtype(self, tensor: Tensor, dtype: mstype.Type) -> Tensor:
        """See ``Device``."""
        return tensor if tensor.dtype == dtype else tensor.astype(dtype)

    def concatenated(self, tensors: Sequence[Tensor]) -> Tensor:
        """See ``Device``."""
        return mint.cat(list(tensors))

    def as_numpy(self, tensor: Tensor, flat: bool = False) -> np.ndarray:
        """See ``Device``."""
        if not tensor.is_contiguous():
            raise ValueError(
                f"tensor of shape {tuple(tensor.shape)} is not contiguous; pass contiguous(tensor)"
            )
        array = tensor.asnumpy()
        if array.dtype != NUMPY_OF[tensor.dtype]:
            array = array.view(NUMPY_OF[tensor.dtype])
        return array.reshape(-1) if flat else array

    def copy_(self, dst: Tensor, src: Tensor) -> None:
        """See ``Device``."""
        require_same_layout(dst, src)
        dst.copy_(src)

    def copy_from_host(self, dst: Tensor, values: np.ndarray) -> None:
        """See ``Device``."""
        require_host_layout(dst, values)
        shaped = values.reshape(dst.shape)
        if dst.dtype == mstype.bfloat16:
            wide = bfloat16_to_float32(shaped)  # exact, and back
            dst.copy_(Tensor(wide).astype(mstype.bfloat16))
        else:
            dst.copy_(Tensor(shaped))

    def zero_(self, tensor: Tensor) -> None:
        """See ``Device``."""
        tensor.zero_()
