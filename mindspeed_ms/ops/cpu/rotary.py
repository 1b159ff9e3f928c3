# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.cpu.library import STORAGE, native

Context = Any


def _rotated(t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, backward: bool) -> Tensor:
    t = t.contiguous()
    y = memory.empty(t.shape, t.dtype)
    native.rotary(
        STORAGE[t.dtype],
        t.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        y.data_ptr(),
        *t.shape,
        cos.shape[3],
        cos.shape[1],
        interleaved,
        backward,
    )
    return y


class _Rotary(autograd.Function):
    """The gradient is the transposed rotation; only the tables are kept."""

    @staticmethod
    def forward(ctx: Context, t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _rotated(t, cos, sin, interleaved, backward=False)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, sin, ctx.interleaved, backward=True), None, None, None


def rotary(t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """See ``ops.rotary``."""
    return _Rotary.apply(t, cos, sin, interleaved)
