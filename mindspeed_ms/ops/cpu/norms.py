# SPDX-License-Identifier: Apache-2.0
"""LayerNorm and RMSNorm."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.cpu.library import STORAGE, native

Context = Any


class _Norm(autograd.Function):
    """Keeps x and one or two fp32 numbers per row for backward."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        columns = x.shape[-1]
        rows = x.size // max(columns, 1)
        y = memory.empty(x.shape, x.dtype)
        rstd = memory.empty((rows,))
        mean = None
        if bias is not None:
            bias, mean = bias.contiguous(), memory.empty((rows,))
        native.norm_forward(
            STORAGE[x.dtype],
            x.data_ptr(),
            weight.data_ptr(),
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
            None if mean is None else mean.data_ptr(),
            rstd.data_ptr(),
            rows,
            columns,
            eps,
        )
        # Backward reads the weight again, so the optimizer must not run between the two.
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        dy = dy.contiguous()
        dx, dweight = memory.empty(x.shape, x.dtype), memory.empty(weight.shape, weight.dtype)
        dbias = None if mean is None else memory.empty(weight.shape, weight.dtype)
        native.norm_backward(
            STORAGE[x.dtype],
            x.data_ptr(),
            dy.data_ptr(),
            weight.data_ptr(),
            None if mean is None else mean.data_ptr(),
            rstd.data_ptr(),
            dx.data_ptr(),
            dweight.data_ptr(),
            None if dbias is None else dbias.data_ptr(),
            rstd.size,
            weight.shape[0],
        )
        return dx, dweight, dbias, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See ``ops.layer_norm``."""
    return _Norm.apply(x, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ``ops.rms_norm``."""
    return _Norm.apply(x, weight, None, eps)
