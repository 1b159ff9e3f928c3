# SPDX-License-Identifier: Apache-2.0
"""Dropout; the mask is drawn again in backward from (seed, offset), never stored."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.cpu.library import STORAGE, native
from mindspeed_ms.ops.dropout_words import draw
from mindspeed_ms.ops.portable.dropout import threshold

Context = Any

Draw = tuple[int, int, int, float]
"""(seed, offset, threshold, scale); scale 0 means that nothing is dropped."""

NO_DROPOUT: Draw = (0, 0, 0, 0.0)


def draw_words(p: float, generator: Generator, count: int) -> Draw:
    """Reserve the words of one dropout of ``count`` elements."""
    seed, offset = draw(generator, count)
    return seed, offset, threshold(p), 1.0 / (1.0 - p)


def _applied(x: Tensor, bias: Tensor | None, residual: Tensor | None, draw: Draw) -> Tensor:
    y = memory.empty(x.shape, x.dtype)
    columns = x.shape[-1] if len(x.shape) else 1
    native.dropout(
        STORAGE[x.dtype],
        x.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if residual is None else residual.data_ptr(),
        y.data_ptr(),
        x.size // max(columns, 1),
        columns,
        *draw,
    )
    return y


class _Dropout(autograd.Function):
    """``y = residual + (x + bias) * keep``; nothing is kept but the draw."""

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, bias: Tensor | None, residual: Tensor | None, draw: Draw
    ) -> Tensor:
        ctx.draw, ctx.has_bias, ctx.has_residual = draw, bias is not None, residual is not None
        return _applied(
            x.contiguous(),
            None if bias is None else bias.contiguous(),
            None if residual is None else residual.contiguous(),
            draw,
        )

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        # Without dropout x and the residual get one and the same tensor as their gradient.
        dx = dy = dy.contiguous()
        if ctx.draw != NO_DROPOUT:
            dx = _applied(dy, None, None, ctx.draw)
        dbias = None
        if ctx.has_bias:
            columns = dx.shape[-1]
            dbias = memory.empty((columns,), dx.dtype)
            rows = dx.size // max(columns, 1)
            native.bias_grad(STORAGE[dx.dtype], dx.data_ptr(), dbias.data_ptr(), rows, columns)
        return dx, dbias, dy if ctx.has_residual else None, None


def dropout(x: Tensor, p: float, generator: Generator) -> Tensor:
    """See ``ops.dropout``."""
    return _Dropout.apply(x, None, None, draw_words(p, generator, x.size))


def bias_dropout_add(
    x: Tensor, bias: Tensor | None, residual: Tensor, p: float, generator: Generator | None
) -> Tensor:
    """See ``ops.bias_dropout_add``."""
    words = NO_DROPOUT
    if generator is not None and p > 0.0:
        words = draw_words(p, generator, x.size)
    return _Dropout.apply(x, bias, residual, words)
