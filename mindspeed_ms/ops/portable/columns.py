# SPDX-License-Identifier: Apache-2.0
"""Parts of the last dimension: copies, so every element keeps its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, device, memory
from mindspeed_ms.ops.portable.arrays import Array, tensor_of, wide

Context = Any


def _bits(tensor: Tensor) -> Array:
    return memory.as_numpy(memory.contiguous(tensor))


def _tensor(array: Array, like: Tensor) -> Tensor:
    """Tensor of the type of ``like`` from an array with its layout."""
    values = np.ascontiguousarray(array)
    if device.is_ascend():
        return tensor_of(values.astype(np.float32), like.dtype)
    result = memory.empty(values.shape, like.dtype)
    memory.as_numpy(result)[...] = values
    return result


def _cut(array: Array, sizes: tuple[int, ...]) -> list[Array]:
    return np.split(array, np.cumsum(sizes)[:-1], axis=-1)


class _Split(autograd.Function):
    """The parts; the gradients side by side."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        # The engine would fill in zeros for an unused part, on CPU by an operator that leaks.
        ctx.materialize_grads = False
        ctx.sizes, ctx.shape, ctx.dtype = sizes, tuple(x.shape), x.dtype
        return tuple(_tensor(part, x) for part in _cut(_bits(x), sizes))

    @staticmethod
    def backward(ctx: Context, *grads: Tensor | None) -> tuple[Tensor, None]:
        whole = np.zeros(ctx.shape, memory.numpy_dtype(ctx.dtype))
        for part, grad in zip(_cut(whole, ctx.sizes), grads, strict=True):
            if grad is not None:
                part[...] = _bits(grad)
        return _tensor(whole, next(grad for grad in grads if grad is not None)), None


def split_columns(x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """See ``ops.split_columns``."""
    return _Split.apply(x, sizes) if len(sizes) > 1 else (x,)


class _Join(autograd.Function):
    """The parts side by side; the gradient cut, and summed over the copies of a part."""

    @staticmethod
    def forward(ctx: Context, padding: int, *parts: Tensor) -> Tensor:
        ctx.shapes = [tuple(part.shape) for part in parts]
        rows = max(shape[-2] for shape in ctx.shapes)
        columns = sum(shape[-1] for shape in ctx.shapes) + padding
        first = _bits(parts[0])
        joined = np.zeros((*ctx.shapes[0][:-2], rows, columns), first.dtype)
        start = 0
        for part in parts:
            joined[..., start : start + part.shape[-1]] = _bits(part)
            start += part.shape[-1]
        return _tensor(joined, parts[0])

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None]
        start = 0
        for shape in ctx.shapes:
            columns = slice(start, start + shape[-1])
            start += shape[-1]
            if shape[-2] == grad.shape[-2]:
                grads.append(_tensor(_bits(grad)[..., columns], grad))
            else:
                total = wide(grad)[..., columns].sum(axis=-2, keepdims=True)
                grads.append(tensor_of(total, grad.dtype))
        return tuple(grads)


def join_columns(parts: tuple[Tensor, ...], padding: int) -> Tensor:
    """See ``ops.join_columns``."""
    return _Join.apply(padding, *parts)
