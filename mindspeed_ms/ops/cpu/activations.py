"""Pointwise activations with an optional bias in front."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.cpu.library import STORAGE, native

Context = Any

_GELU = {"none": 0, "tanh": 1}
_SILU, _SQUARED_RELU, _SWIGLU = 2, 3, 4


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
