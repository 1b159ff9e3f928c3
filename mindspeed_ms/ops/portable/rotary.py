# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd
from mindspeed_ms.ops.portable.arrays import Array, tensor_of, wide

Context = Any


def _turned(t: Array, interleaved: bool, sign: float) -> Array:
    """(a, b) -> (-b, a) times ``sign``, on halves or on neighbouring pairs.

    The map is antisymmetric, so ``sign = -1`` gives its transpose.
    """
    result = np.empty_like(t)
    if interleaved:
        result[..., 0::2], result[..., 1::2] = -t[..., 1::2], t[..., 0::2]
    else:
        half = t.shape[-1] // 2
        result[..., :half], result[..., half:] = -t[..., half:], t[..., :half]
    return result if sign > 0 else -result


class _Rotary(autograd.Function):
    """``y = t * cos + turn(t) * sin``; ``dt = dy * cos + turn_transposed(dy * sin)``."""

    @staticmethod
    def forward(ctx: Context, t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        values, rot = wide(t), cos.shape[-1]
        head = values[..., :rot]
        turned = head * wide(cos) + _turned(head, interleaved, 1.0) * wide(sin)
        return tensor_of(np.concatenate((turned, values[..., rot:]), axis=-1), t.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        grad, rot = wide(dy), cos.shape[-1]
        head = grad[..., :rot]
        turned = head * wide(cos) + _turned(head * wide(sin), ctx.interleaved, -1.0)
        dt = np.concatenate((turned, grad[..., rot:]), axis=-1)
        return tensor_of(dt, dy.dtype), None, None, None


def rotary(t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """See ``ops.rotary``."""
    return _Rotary.apply(t, cos, sin, interleaved)
