# SPDX-License-Identifier: Apache-2.0
"""LayerNorm and RMSNorm."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd
from mindspeed_ms.ops.portable.arrays import Array, sum_rows, tensor_of, wide

Context = Any


def _normalised(x: Array, eps: float, centred: bool) -> tuple[Array, Array]:
    """(rows scaled to unit size, the scale of each row)."""
    if centred:
        x = x - x.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    square = np.square(x).mean(axis=-1, keepdims=True, dtype=np.float64)
    rstd = (1.0 / np.sqrt(square + eps)).astype(np.float32)
    return x * rstd, rstd


class _Norm(autograd.Function):
    """``y = n * weight + bias`` where n is the normalised row.

    With ``g = dy * weight``: ``dx = rstd * (g - n * mean(g * n) [- mean(g) when centred])``,
    ``dweight = sum(dy * n)``, ``dbias = sum(dy)``.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.centred = eps, bias is not None
        y = _normalised(wide(x), eps, ctx.centred)[0] * wide(weight)
        return tensor_of(y if bias is None else y + wide(bias), x.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        n, rstd = _normalised(wide(x), ctx.eps, ctx.centred)
        grad = wide(dy)
        g = grad * wide(weight)
        dx = g - n * (g * n).mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        if ctx.centred:
            dx -= g.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        dbias = tensor_of(sum_rows(grad), dy.dtype) if ctx.centred else None
        dweight = tensor_of(sum_rows(grad * n), weight.dtype)
        return tensor_of(dx * rstd, x.dtype), dweight, dbias, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See ``ops.layer_norm``."""
    return _Norm.apply(x, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ``ops.rms_norm``."""
    return _Norm.apply(x, weight, None, eps)
