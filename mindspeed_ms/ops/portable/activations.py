# SPDX-License-Identifier: Apache-2.0
"""Pointwise activations with an optional bias in front."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.kernel_set import QUICK
from mindspeed_ms.ops.portable.arrays import Array, sum_rows, tensor_of, wide

Context = Any
_SQRT_2_OVER_PI = np.float32(math.sqrt(2.0 / math.pi))
Map = Callable[[Array], Array]
_CUBIC = np.float32(0.044715)


def sigmoid(z: Array) -> Array:
    """``1 / (1 + exp(-z))`` without overflow."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)


def erf(z: Array) -> Array:
    """Error function (MindSpore's own, right to 7e-8)."""
    if z.size == 0:
        return z
    return memory.as_numpy(ms.ops.erf(tensor_of(z)))


def _gelu_erf(z: Array) -> Array:
    return 0.5 * z * (1.0 + erf(z * np.float32(math.sqrt(0.5))))


def _gelu_erf_slope(z: Array) -> Array:
    density = np.exp(-0.5 * z * z) * np.float32(1.0 / math.sqrt(2.0 * math.pi))
    return 0.5 * (1.0 + erf(z * np.float32(math.sqrt(0.5)))) + z * density


def _gelu_tanh(z: Array) -> Array:
    return 0.5 * z * (1.0 + np.tanh(_SQRT_2_OVER_PI * (z + _CUBIC * z * z * z)))


def _gelu_tanh_slope(z: Array) -> Array:
    t = np.tanh(_SQRT_2_OVER_PI * (z + _CUBIC * z * z * z))
    inner = _SQRT_2_OVER_PI * (1.0 + 3.0 * _CUBIC * z * z)
    return 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * inner


def _silu(z: Array) -> Array:
    return z * sigmoid(z)


def _silu_slope(z: Array) -> Array:
    s = sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


def _relu(z: Array) -> Array:
    return np.maximum(z, 0)


def _relu_slope(z: Array) -> Array:
    return (z > 0).astype(z.dtype)


def _squared_relu(z: Array) -> Array:
    return np.square(np.maximum(z, 0))


def _squared_relu_slope(z: Array) -> Array:
    return 2.0 * np.maximum(z, 0)


def _quick_gelu(z: Array, alpha: float = QUICK) -> Array:
    return z * sigmoid(np.float32(alpha) * z)


def _quick_gelu_slope(z: Array, alpha: float = QUICK) -> Array:
    z_alpha = np.float32(alpha) * z
    s = sigmoid(z_alpha)
    return s * (1.0 + z_alpha * (1.0 - s))


_POINTWISE = {
    "gelu_none": (_gelu_erf, _gelu_erf_slope),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_slope),
    "silu": (_silu, _silu_slope),
    "relu": (_relu, _relu_slope),
    "squared_relu": (_squared_relu, _squared_relu_slope),
    "quick_gelu": (_quick_gelu, _quick_gelu_slope),
}
_GATES = {
    "gelu": _POINTWISE["gelu_none"],
    "fast_gelu": _POINTWISE["gelu_tanh"],
    "silu": _POINTWISE["silu"],
    "quick_gelu": _POINTWISE["quick_gelu"],
    "relu": _POINTWISE["relu"],
}


def _biased(x: Tensor, bias: Tensor | None) -> Array:
    return wide(x) if bias is None else wide(x) + wide(bias)


class _Pointwise(autograd.Function):
    """``y = f(x + bias)``; ``dx = dy * f'(x + bias)``, ``dbias = sum(dx)``."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, bias: Tensor | None, name: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.name = name
        return tensor_of(_POINTWISE[name][0](_biased(x, bias)), x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        dx = wide(dy) * _POINTWISE[ctx.name][1](_biased(x, bias))
        dbias = None if bias is None else tensor_of(sum_rows(dx), bias.dtype)
        return tensor_of(dx, x.dtype), dbias, None


class _Swiglu(autograd.Function):
    """``y = silu(gate) * up``; ``dgate = dy * up * silu'(gate)``, ``dup = dy * silu(gate)``."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, bias)
        gate, up = np.split(_biased(x, bias), 2, axis=-1)
        return tensor_of(_silu(gate) * up, x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        gate, up = np.split(_biased(x, bias), 2, axis=-1)
        grad = wide(dy)
        dx = np.concatenate((grad * up * _silu_slope(gate), grad * _silu(gate)), axis=-1)
        dbias = None if bias is None else tensor_of(sum_rows(dx), bias.dtype)
        return tensor_of(dx, x.dtype), dbias


def gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """See ``ops.gelu``."""
    return _Pointwise.apply(x, bias, f"gelu_{approximate}")


def silu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.silu``."""
    return _Pointwise.apply(x, bias, "silu")


def relu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.relu``."""
    return _Pointwise.apply(x, bias, "relu")


def squared_relu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.squared_relu``."""
    return _Pointwise.apply(x, bias, "squared_relu")


def swiglu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.swiglu``."""
    return _Swiglu.apply(x, bias)


def quick_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.quick_gelu``."""
    return _Pointwise.apply(x, bias, "quick_gelu")


class _Gated(autograd.Function):
    """``y = f(g) (u + offset)`` with g = min(gate, limit), u = clip(up, -limit, limit).

    ``dgate = dy (u + offset) f'(g)`` and ``dup = dy f(g)`` where they are not limited, else 0.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        bias: Tensor | None,
        activation: str,
        limit: float | None,
        offset: float,
        alpha: float,
    ) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.call = _of_gate(activation, alpha), limit, offset
        gate, up = _limited(_biased(x, bias), limit)
        return tensor_of(ctx.call[0][0](gate) * (up + np.float32(offset)), x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        (value, slope), limit, offset = ctx.call
        before = _biased(x, bias)
        gate, up = _limited(before, limit)
        grad = wide(dy)
        dx = np.concatenate(
            (grad * (up + np.float32(offset)) * slope(gate), grad * value(gate)), axis=-1
        )
        dx = np.where(before == np.concatenate((gate, up), axis=-1), dx, np.float32(0.0))
        dbias = None if bias is None else tensor_of(sum_rows(dx), bias.dtype)
        return tensor_of(dx, x.dtype), dbias, None, None, None, None


def _of_gate(activation: str, alpha: float) -> tuple[Map, Map]:
    """What is done to the gate, and its slope."""
    if activation != "quick_gelu":
        return _GATES[activation]
    return partial(_quick_gelu, alpha=alpha), partial(_quick_gelu_slope, alpha=alpha)


def _limited(z: Array, limit: float | None) -> tuple[Array, Array]:
    gate, up = np.split(z, 2, axis=-1)
    if limit is None:
        return gate, up
    return np.minimum(gate, np.float32(limit)), np.clip(up, -np.float32(limit), np.float32(limit))


def gated(
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    limit: float | None,
    offset: float,
    alpha: float,
) -> Tensor:
    """See ``ops.gated``."""
    return _Gated.apply(x, bias, activation, limit, offset, alpha)


class _Scaled(autograd.Function):
    """``y = factor x``."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, factor: float) -> Tensor:
        ctx.factor = np.float32(factor)
        return tensor_of(wide(x) * ctx.factor, x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, None]:
        return tensor_of(wide(dy) * ctx.factor, dy.dtype), None


def scaled(x: Tensor, factor: float) -> Tensor:
    """See ``ops.scaled``."""
    return _Scaled.apply(x, factor)


class _Clipped(autograd.Function):
    """``y = clip(x, -limit, limit)``; ``dx = dy`` where ``|x| <= limit``, else 0."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limit = np.float32(limit)
        return tensor_of(np.clip(wide(x), -ctx.limit, ctx.limit), x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        is_within = np.abs(wide(x)) <= ctx.limit
        return tensor_of(np.where(is_within, wide(dy), np.float32(0.0)), dy.dtype), None


def clipped(x: Tensor, limit: float) -> Tensor:
    """See ``ops.clipped``."""
    return _Clipped.apply(x, limit)


class _Softcapped(autograd.Function):
    """``y = cap tanh(x / cap)``; ``dx = dy (1 - tanh(x / cap)^2)``."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, cap: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.cap = np.float32(cap)
        return tensor_of(ctx.cap * np.tanh(wide(x) / ctx.cap), x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        t = np.tanh(wide(x) / ctx.cap)
        return tensor_of(wide(dy) * (1.0 - t * t), dy.dtype), None


def softcapped(x: Tensor, cap: float) -> Tensor:
    """See ``ops.softcapped``."""
    return _Softcapped.apply(x, cap)


class _SigmoidGated(autograd.Function):
    """``y = x s`` with ``s = sigmoid(gate)``; ``dx = dy s``, ``dgate = dy x s (1 - s)``."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate)
        return tensor_of(wide(x) * sigmoid(wide(gate)), x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, gate = ctx.saved_tensors
        s, grad = sigmoid(wide(gate)), wide(dy)
        dgate = grad * wide(x) * s * (1.0 - s)
        return tensor_of(grad * s, x.dtype), tensor_of(dgate, gate.dtype)


def sigmoid_gated(x: Tensor, gate: Tensor) -> Tensor:
    """See ``ops.sigmoid_gated``."""
    return _SigmoidGated.apply(x, gate)
