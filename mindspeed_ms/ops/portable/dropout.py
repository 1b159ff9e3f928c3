# SPDX-License-Identifier: Apache-2.0
"""Dropout from the counter-based generator Philox4x32-10.

Word w of the stream of a seed is element ``w % 4`` of the Philox block with the counter
``(w // 4, 0)`` (low 32 bits first) and the seed as key. An element is kept when its word is at
least ``floor(p * 2^32)``. Every kernel set draws the same words, so a run can move between them.

Source: Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.dropout_words import BLOCK, draw
from mindspeed_ms.ops.portable.arrays import Array, sum_rows, tensor_of, wide

Context = Any

_LOW = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox_words(seed: int, offset: int, count: int) -> Array:
    """Words ``offset .. offset + count - 1`` of the stream of ``seed``, as uint32."""
    first, last = offset // BLOCK, (offset + count + BLOCK - 1) // BLOCK
    blocks = np.arange(last - first, dtype=np.uint64) + np.uint64(first)
    start = offset - first * BLOCK
    return philox_blocks(seed, blocks).reshape(-1)[start : start + count]


def philox_blocks(seed: int, blocks: Array, streams: Array | None = None) -> Array:
    """The four words of each block, uint32 [..., 4].

    Args:
        seed: the key.
        blocks: uint64, the lower half of the counter.
        streams: uint64, the upper half, None for 0.
    """
    high = np.zeros_like(blocks) if streams is None else np.broadcast_to(streams, blocks.shape)
    x0, x1 = blocks & _LOW, blocks >> np.uint64(32)
    x2, x3 = high & _LOW, high >> np.uint64(32)
    key0, key1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        product0, product1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            (product1 >> np.uint64(32)) ^ x1 ^ np.uint64(key0),
            product1 & _LOW,
            (product0 >> np.uint64(32)) ^ x3 ^ np.uint64(key1),
            product0 & _LOW,
        )
        key0, key1 = (key0 + _WEYL[0]) & 0xFFFFFFFF, (key1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((x0, x1, x2, x3), axis=-1).astype(np.uint32)


def threshold(p: float) -> int:
    """Words below it are dropped."""
    return math.floor(p * 2.0**32)


def keep_scale(p: float, seed: int, offset: int, shape: tuple[int, ...]) -> Array:
    """Factor of each element: ``1 / (1 - p)`` where it is kept, else 0."""
    words = philox_words(seed, offset, math.prod(shape))
    kept = words >= np.uint32(threshold(p))
    return (kept * np.float32(1.0 / (1.0 - p))).reshape(shape)


def keep_scale_of_words(p: float, seed: int, words: Array) -> Array:
    """``keep_scale`` of elements whose words have the given numbers (int64)."""
    blocks, lanes = np.divmod(words, BLOCK)
    drawn = philox_blocks(seed, blocks.astype(np.uint64))
    kept = np.take_along_axis(drawn, lanes[..., None], axis=-1)[..., 0] >= np.uint32(threshold(p))
    return kept * np.float32(1.0 / (1.0 - p))


class _Dropout(autograd.Function):
    """``y = residual + (x + bias) * keep``; dx = dy * keep, dbias = sum(dx), dresidual = dy."""

    @staticmethod
    def forward(  # noqa: PLR0913 - one argument per input of the operation
        ctx: Context,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        p: float,
        seed: int,
        offset: int,
    ) -> Tensor:
        ctx.p, ctx.seed, ctx.offset = p, seed, offset
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.has_residual = residual is not None
        y = wide(x) if bias is None else wide(x) + wide(bias)
        if p > 0.0:
            y = y * keep_scale(p, seed, offset, y.shape)
        return tensor_of(y if residual is None else wide(residual) + y, x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = wide(dy)
        if ctx.p > 0.0:
            dx = dx * keep_scale(ctx.p, ctx.seed, ctx.offset, dx.shape)
        dbias = None if ctx.bias_dtype is None else tensor_of(sum_rows(dx), ctx.bias_dtype)
        dx_tensor = tensor_of(dx, dy.dtype) if ctx.p > 0.0 else dy
        return dx_tensor, dbias, dy if ctx.has_residual else None, None, None, None


def dropout(x: Tensor, p: float, generator: Generator) -> Tensor:
    """See ``ops.dropout``."""
    return _Dropout.apply(x, None, None, p, *draw(generator, x.size))


def bias_dropout_add(
    x: Tensor, bias: Tensor | None, residual: Tensor, p: float, generator: Generator | None
) -> Tensor:
    """See ``ops.bias_dropout_add``."""
    state = draw(generator, x.size) if generator is not None and p > 0.0 else (0, 0)
    return _Dropout.apply(x, bias, residual, p, *state)
