# SPDX-License-Identifier: Apache-2.0
"""Tensors in another shape, on their own memory while a model serves."""

from __future__ import annotations

import math

from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import autograd, device, memory


def reshaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``x.reshape(shape)``; on the host of a model that serves, by way of NumPy.

    An operator of MindSpore takes parts of a millisecond where no other one keeps its dispatch
    thread awake.

    Args:
        x: any tensor.
        shape: at most one size may be -1.
    """
    if not autograd.is_inference_mode_enabled() or device.is_ascend():
        return x.reshape(shape)
    x = memory.contiguous(x)
    if -1 in shape:
        rest = -math.prod(shape)
        shape = tuple(memory.num_elements(x) // rest if size == -1 else size for size in shape)
    if x.dtype == mstype.bfloat16:
        return memory.view_of(x.view((-1,)), 0, shape)
    return memory.from_numpy(memory.flat_view(x).reshape(shape))
