# SPDX-License-Identifier: Apache-2.0
"""Pointwise activations with an optional bias in front."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.cpu.library import STORAGE, native
from mindspeed_ms.ops.kernel_set import QUICK
from mindspeed_ms.ops.portable import activations as portable

Context = Any

_GELU = {"none": 0, "tanh": 1}
_SILU, _SQUARED_RELU, _SWIGLU, _QUICK_GELU = 2, 3, 4, 5
_GATES = {"gelu": 0, "fast_gelu": 1, "silu": _SILU, "quick_gelu": _QUICK_GELU}
_SCALED, _SOFTCAPPED = 0, 1


class _Activation(autograd.Function):
    """Keeps x and the bias, and computes the slope again in backward."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, bias: Tensor | None, kind: int) -> Tensor:
        x = x.contiguous()
        if bias is not None:
            bias = bias.contiguous()
        columns = x.shape[-1]
        width = columns // 2 if kind == _SWIGLU else columns
        y = memory.empty((*x.shape[:-1], width), x.dtype)
        ctx.rows = x.size // max(columns, 1)
        ctx.kind = kind
        native.activation_forward(
            STORAGE[x.dtype],
            kind,
            x.data_ptr(),
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            ctx.rows,
            columns,
        )
        ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        dy, dx = dy.contiguous(), memory.empty(x.shape, x.dtype)
        dbias = None if bias is None else memory.empty(bias.shape, bias.dtype)
        native.activation_backward(
            STORAGE[x.dtype],
            ctx.kind,
            x.data_ptr(),
            None if bias is None else bias.data_ptr(),
            dy.data_ptr(),
            dx.data_ptr(),
            None if dbias is None else dbias.data_ptr(),
            ctx.rows,
            x.shape[-1],
        )
        return dx, dbias, None


def gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """See ``ops.gelu``."""
    return _Activation.apply(x, bias, _GELU[approximate])


def silu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.silu``."""
    return _Activation.apply(x, bias, _SILU)


def squared_relu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.squared_relu``."""
    return _Activation.apply(x, bias, _SQUARED_RELU)


def swiglu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.swiglu``."""
    return _Activation.apply(x, bias, _SWIGLU)


def quick_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.quick_gelu``."""
    return _Activation.apply(x, bias, _QUICK_GELU)


class _Gated(autograd.Function):
    """Keeps x and the bias, and computes the slope again in backward."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, bias: Tensor | None, kind: int, limit: float, offset: float
    ) -> Tensor:
        x = x.contiguous()
        bias = None if bias is None else bias.contiguous()
        columns = x.shape[-1]
        y = memory.empty((*x.shape[:-1], columns // 2), x.dtype)
        ctx.call, ctx.size = (kind, limit, offset), (x.size // max(columns, 1), columns)
        shift = None if bias is None else bias.data_ptr()
        native.gated_forward(
            STORAGE[x.dtype], kind, x.data_ptr(), shift, y.data_ptr(), *ctx.size, limit, offset
        )
        ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        kind, limit, offset = ctx.call
        dy, dx = dy.contiguous(), memory.empty(x.shape, x.dtype)
        dbias = None if bias is None else memory.empty(bias.shape, bias.dtype)
        native.gated_backward(
            STORAGE[x.dtype],
            kind,
            x.data_ptr(),
            None if bias is None else bias.data_ptr(),
            dy.data_ptr(),
            dx.data_ptr(),
            None if dbias is None else dbias.data_ptr(),
            *ctx.size,
            limit,
            offset,
        )
        return dx, dbias, None, None, None


def gated(
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    limit: float | None,
    offset: float,
    alpha: float,
) -> Tensor:
    """See ``ops.gated``."""
    if activation not in _GATES or (activation == "quick_gelu" and alpha != QUICK):
        return portable.gated(x, bias, activation, limit, offset, alpha)
    return _Gated.apply(x, bias, _GATES[activation], limit or 0.0, offset)


class _Map(autograd.Function):
    """What one number does to every element; x is kept where its slope needs it."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, kind: int, number: float) -> Tensor:
        x = x.contiguous()
        y = memory.empty(x.shape, x.dtype)
        ctx.kind, ctx.number = kind, number
        native.map_forward(STORAGE[x.dtype], kind, x.data_ptr(), y.data_ptr(), x.size, number)
        if kind == _SOFTCAPPED:
            ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        dy = dy.contiguous()
        dx = memory.empty(dy.shape, dy.dtype)
        before = ctx.saved_tensors[0].data_ptr() if ctx.kind == _SOFTCAPPED else None
        native.map_backward(
            STORAGE[dy.dtype],
            ctx.kind,
            before,
            dy.data_ptr(),
            dx.data_ptr(),
            dy.size,
            ctx.number,
        )
        return dx, None, None


def scaled(x: Tensor, factor: float) -> Tensor:
    """See ``ops.scaled``."""
    return _Map.apply(x, _SCALED, factor)


def softcapped(x: Tensor, cap: float) -> Tensor:
    """See ``ops.softcapped``."""
    return _Map.apply(x, _SOFTCAPPED, cap)
