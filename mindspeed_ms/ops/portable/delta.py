# SPDX-License-Identifier: Apache-2.0
"""Linear attention with a gated delta rule, token after token; the convolution in front of it.

Legend: S sequence, B batch, K key heads of width c, V value heads of width d, C channels, w taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd
from mindspeed_ms.ops.portable.activations import sigmoid
from mindspeed_ms.ops.portable.arrays import Array, tensor_of, wide

Context = Any

_EVERY = 32
"""Tokens between two states that forward keeps."""
_EPS = 1e-6


class _CausalConv(autograd.Function):
    """``y[t] = silu(z[t])`` with ``z[t] = sum over j of w[j] x[t - (w - 1) + j]``, per channel."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        z = _convolved(wide(x), wide(weight)[:, 0])
        return tensor_of(z * sigmoid(z), x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        values, taps = wide(x), wide(weight)[:, 0]
        z = _convolved(values, taps)
        s = sigmoid(z)
        dz = wide(dy) * s * (1.0 + z * (1.0 - s))
        dx, dtaps = np.zeros_like(dz), np.zeros_like(taps)
        length, last = len(dz), taps.shape[1] - 1
        for tap in range(min(last + 1, length)):  # ``tap`` tokens back
            here = dz[tap:]
            dx[: length - tap] += here * taps[:, last - tap]
            dtaps[:, last - tap] = (here * values[: length - tap]).sum((0, 1), dtype=np.float64)
        return tensor_of(dx, x.dtype), tensor_of(dtaps[:, None], weight.dtype)


def _convolved(x: Array, taps: Array) -> Array:
    last = taps.shape[1] - 1
    z = x * taps[:, last]
    for tap in range(1, min(last + 1, len(x))):
        z[tap:] += x[:-tap] * taps[:, last - tap]
    return z


def causal_conv_silu(x: Tensor, weight: Tensor) -> Tensor:
    """See ``ops.causal_conv_silu``."""
    return _CausalConv.apply(x, weight)


@dataclass(slots=True)
class _Inputs:
    """What the recurrence reads, [S, B * V, ...]: normalized queries and keys, values, factors."""

    q: Array
    k: Array
    v: Array
    decay: Array
    rate: Array

    def token(self, t: int) -> tuple[Array, Array, Array, Array]:
        """(k, v, decay, rate) of a token, shaped for products with states."""
        return self.k[t][:, :, None], self.v[t], self.decay[t][:, None, None], self.rate[t][:, None]


def _unit(x: Array) -> tuple[Array, Array]:
    """(heads of length 1, 1 / length)."""
    inverse = 1.0 / np.sqrt(np.square(x).sum(-1, keepdims=True) + _EPS)
    return x * inverse, inverse


def _unit_grad(x: Array, inverse: Array, dy: Array) -> Array:
    return inverse * dy - x * inverse**3 * (x * dy).sum(-1, keepdims=True)


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, np.float32(0))


def _heads(x: Array, repeat: int) -> Array:
    """[S, B, K, c] -> [S, B * V, c], every head ``repeat`` times."""
    return np.ascontiguousarray(x.repeat(repeat, axis=2)).reshape(len(x), -1, x.shape[-1])


def _prepared(q: Array, k: Array, v: Array, g: Array, b: Array) -> _Inputs:
    repeat = v.shape[2] // q.shape[2]
    scale = np.float32(1.0 / math.sqrt(q.shape[-1]))
    flat = (len(v), -1)
    return _Inputs(
        _heads(_unit(q)[0] * scale, repeat),
        _heads(_unit(k)[0], repeat),
        v.reshape(*flat, v.shape[-1]),
        np.exp(g).reshape(flat),
        sigmoid(b).reshape(flat),
    )


def _step(state: Array, k: Array, v: Array, decay: Array, rate: Array) -> tuple[Array, Array]:
    """(decayed state, what is written): S' = d S, w = r (v - S'^T k); the new state is S' + k w."""
    state = state * decay
    return state, rate * (v - (state * k).sum(1))


class _DeltaRule(autograd.Function):
    """See ``ops.gated_delta_rule``; backward goes through 32 tokens at a time, from kept states."""

    @staticmethod
    def forward(ctx: Context, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        q, k, v, a, b, log_rate, dt_bias = (wide(one) for one in tensors)
        g = -np.exp(log_rate) * _softplus(a + dt_bias)
        inputs = _prepared(q, k, v, g, b)
        state = np.zeros((inputs.v.shape[1], q.shape[-1], v.shape[-1]), np.float32)
        out, ctx.states = np.empty_like(inputs.v), []
        for t in range(len(v)):
            if t % _EVERY == 0:
                ctx.states.append(state)
            key, *rest = inputs.token(t)
            decayed, written = _step(state, key, *rest)
            state = decayed + key * written[:, None]
            out[t] = (state * inputs.q[t][:, :, None]).sum(1)
        return tensor_of(out.reshape(v.shape), tensors[2].dtype)

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor, ...]:
        tensors = ctx.saved_tensors
        q, k, v, a, b, log_rate, dt_bias = (wide(one) for one in tensors)
        g = -np.exp(log_rate) * _softplus(a + dt_bias)
        inputs = _prepared(q, k, v, g, b)
        dq, dk, dv, dg, db = _through_time(inputs, ctx.states, wide(dout).reshape(inputs.v.shape))
        shape, repeat = v.shape, v.shape[2] // q.shape[2]

        def summed(grad: Array, like: Array) -> Array:
            return grad.reshape(*shape[:2], -1, repeat, like.shape[-1]).sum(3)

        scale = np.float32(1.0 / math.sqrt(q.shape[-1]))
        dq = _unit_grad(q, _unit(q)[1], summed(dq, q) * scale)
        dk = _unit_grad(k, _unit(k)[1], summed(dk, k))
        dg, db = dg.reshape(shape[:3]), db.reshape(shape[:3])
        rate = sigmoid(b)
        da = -dg * np.exp(log_rate) * sigmoid(a + dt_bias)
        sums = ((dg * g).sum((0, 1), dtype=np.float64), da.sum((0, 1), dtype=np.float64))
        grads = (dq, dk, dv.reshape(shape), da, db * rate * (1.0 - rate), *sums)
        return tuple(
            tensor_of(grad.astype(np.float32), one.dtype)
            for grad, one in zip(grads, tensors, strict=True)
        )


def _through_time(
    inputs: _Inputs, states: list[Array], dout: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """Gradients of (q, k, v, log of the decay, rate) from those of the results."""
    dq, dk, dv = (np.empty_like(one) for one in (inputs.q, inputs.k, inputs.v))
    dg, db = np.empty_like(inputs.decay), np.empty_like(inputs.rate)
    dstate = np.zeros_like(states[0])
    for number in reversed(range(len(states))):
        first, state, seen = number * _EVERY, states[number], []
        for t in range(first, min(first + _EVERY, len(dout))):
            key, *rest = inputs.token(t)
            decayed, written = _step(state, key, *rest)
            seen.append((decayed, written))
            state = decayed + key * written[:, None]
        for t in reversed(range(first, first + len(seen))):
            decayed, written = seen[t - first]
            key, value, decay, rate = inputs.token(t)
            state = decayed + key * written[:, None]
            do = dout[t][:, None]
            dq[t] = (state * do).sum(2)
            dstate = dstate + inputs.q[t][:, :, None] * do
            dwritten = (dstate * key).sum(1)
            read = (decayed * key).sum(1)
            dv[t] = rate * dwritten
            db[t] = (dwritten * (value - read)).sum(1)
            dk[t] = (dstate * written[:, None]).sum(2) - (decayed * dv[t][:, None]).sum(2)
            dstate = dstate - key * dv[t][:, None]
            dg[t] = (dstate * decayed).sum((1, 2))
            dstate = dstate * decay
    return dq, dk, dv, dg, db


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_rate: Tensor, dt_bias: Tensor
) -> Tensor:
    """See ``ops.gated_delta_rule``."""
    return _DeltaRule.apply(q, k, v, a, b, log_rate, dt_bias)
