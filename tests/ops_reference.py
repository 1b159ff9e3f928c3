# SPDX-License-Identifier: Apache-2.0
"""Float64 references of the operations and numerical gradients of them."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops import cpu
from mindspeed_ms.ops.portable.dropout import keep_scale

ERF = np.vectorize(math.erf, otypes=[np.float64])


@pytest.fixture(autouse=True, params=["portable", "cpu"])
def kernel_set(request):
    """Run every test of the importing module on each kernel set that can run here."""
    previous = ops.selected()
    if request.param == "cpu" and cpu.unavailable():
        pytest.skip(f"native library: {cpu.unavailable()}")
    ops.select(request.param)
    yield request.param
    ops.select(previous)


def tensor(array, dtype=ms.float32):
    """Tensor with a copy of the array, rounded to ``dtype`` when floating."""
    array = np.asarray(array)
    if array.dtype.kind != "f":
        return Tensor(array)
    return Tensor(np.ascontiguousarray(array, np.float32)).astype(dtype)


def transposed(array, dtype=ms.float32):
    """The same values as a non-contiguous tensor (stored with the first and last dims swapped)."""
    stored = tensor(np.ascontiguousarray(np.swapaxes(array, 0, -1)), dtype)
    view = ms.mint.transpose(stored, 0, array.ndim - 1)
    assert not view.is_contiguous() or min(array.shape) <= 1, "the view must be strided"
    return view


def leaf(t):
    """Mark a tensor as needing a gradient; returns it."""
    autograd.requires_grad_(t)
    return t


def values(t):
    """The elements of a tensor as float64."""
    if t.dtype == ms.bfloat16:
        t = t.astype(ms.float32)
    return memory.contiguous(t).asnumpy().astype(np.float64)


def run(op, arrays, dy, dtype=ms.float32, strided=False):
    """(output, gradients) of ``op(*tensors)`` for float arrays, as float64; None stays None."""
    make = transposed if strided else tensor
    leaves = [None if a is None else leaf(make(a, dtype)) for a in arrays]
    autograd.enable()
    y = op(*leaves)
    autograd.backward(y, make(dy, dtype))
    grads = [None if one is None else values(autograd.get_grad(one)) for one in leaves]
    return values(y), grads


def numeric_grads(function, arrays, dy, step=1e-5):
    """Gradients of ``sum(dy * function(*arrays))`` by central differences in float64."""
    result = []
    wide = [None if a is None else np.array(a, np.float64) for a in arrays]
    for array in wide:
        if array is None:
            result.append(None)
            continue
        grad = np.empty_like(array)
        for index in np.ndindex(*array.shape):
            centre = array[index]
            array[index] = centre + step
            up = function(*wide)
            array[index] = centre - step
            down = function(*wide)
            array[index] = centre
            grad[index] = np.sum(dy * (up - down)) / (2 * step)
        result.append(grad)
    return result


def assert_close(got, want, tolerance, what="", floor=1e-30):
    """Largest error at most ``tolerance`` times the largest wanted value (at least ``floor``)."""
    want = np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, wanted {want.shape}"
    if want.size == 0:
        return
    error = np.max(np.abs(got - want))
    scale = max(np.max(np.abs(want)), floor)
    assert error <= tolerance * scale, f"{what}: error {error / scale:.2e} of {tolerance:.0e}"


def attention_of(module):
    """``ops.attention`` computed by a named kernel set."""

    def attention(  # noqa: PLR0913 - what is no option of an ``AttentionCall``
        q, k, v, *, mask=None, sinks=None, dropout_p=0.0, generator=None, places=None, **options
    ):
        shape = (q.shape[1], q.shape[2], q.shape[0], k.shape[0])
        dropout = ops.draw_dropout(dropout_p, generator, shape, places)
        call = ops.AttentionCall(dropout=dropout, **options)
        return module.attention(q, k, v, mask, sinks, call)

    return attention


def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def rms_norm(x, weight, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def biased(function):
    return lambda x, bias: function(x if bias is None else x + bias)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def split_swiglu(z):
    gate, up = np.split(z, 2, axis=-1)
    return gate * sigmoid(gate) * up


ACTIVATIONS = {
    "gelu": biased(lambda z: 0.5 * z * (1 + ERF(z / math.sqrt(2)))),
    "gelu_tanh": biased(
        lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    ),
    "silu": biased(lambda z: z * sigmoid(z)),
    "relu": biased(lambda z: np.maximum(z, 0)),
    "squared_relu": biased(lambda z: np.maximum(z, 0) ** 2),
    "swiglu": biased(split_swiglu),
}


def quick_gelu(z):
    return z * sigmoid(1.702 * z)


def gated(z, activation, limit=None, offset=0.0):
    gate, up = np.split(z, 2, axis=-1)
    if limit is not None:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    if activation == "quick_gelu":
        return quick_gelu(gate) * (up + offset)
    name = {"fast_gelu": "gelu_tanh"}.get(activation, activation)
    return ACTIVATIONS[name](gate, None) * (up + offset)


def rotary(t, cos, sin, interleaved):
    rot = cos.shape[-1]
    head, rest = t[..., :rot], t[..., rot:]
    turned = np.empty_like(head)
    if interleaved:
        turned[..., 0::2], turned[..., 1::2] = -head[..., 1::2], head[..., 0::2]
    else:
        a, b = np.split(head, 2, axis=-1)
        turned = np.concatenate((-b, a), -1)
    return np.concatenate((head * cos + turned * sin, rest), -1)


def softmax(scores, mask=None, causal=False, scale=1.0):
    scores = scores * scale
    rows, columns = scores.shape[-2:]
    hidden = np.zeros((rows, columns), bool)
    if causal:
        hidden = np.triu(np.ones((rows, columns), bool), 1 + columns - rows)
    if mask is not None:
        hidden = hidden | mask
    scores = np.where(hidden, -np.inf, scores)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    return weights / np.where(total == 0, 1, total)


def document_mask(documents):
    """[B, 1, S, S'], True where query and key are of different documents."""
    return documents.queries[:, None, :, None] != documents.keys[:, None, None, :]


def attention(q, k, v, *, scale, causal=True, mask=None, dropout_p=0.0, seed=0, offset=0):
    s, b, n, _ = q.shape
    k, v = (np.repeat(t, n // t.shape[2], axis=2) for t in (k, v))
    scores = np.einsum("ibnd,jbnd->bnij", q, k)
    probs = softmax(scores, mask, causal, scale)
    if dropout_p:
        probs = probs * keep_scale(dropout_p, seed, offset, probs.shape)
    return np.einsum("bnij,jbnd->ibnd", probs, v).reshape(s, b, n * v.shape[3])
