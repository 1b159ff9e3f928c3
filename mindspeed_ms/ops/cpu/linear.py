# SPDX-License-Identifier: Apache-2.0
"""Products of a linear layer.

Weights lie somewhere in a buffer of many: they are asked whether they are row-major, since
``Tensor.contiguous`` also copies those that only begin inside their storage.
"""

from __future__ import annotations

from collections.abc import Callable

from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.cpu.library import STORAGE, native

FEW_ROWS = 16
"""Rows up to which reading the weight is what takes the time."""


def product_of(rows: int) -> Callable[..., None]:
    """What computes so many rows of a linear layer."""
    is_few = rows <= FEW_ROWS and autograd.is_inference_mode_enabled()
    return native.linear_few_rows if is_few else native.linear_forward


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.linear_forward``."""
    x = x if x.is_contiguous() else x.contiguous()
    weight = weight if weight.is_contiguous() else weight.contiguous()
    out, width = weight.shape
    y = memory.empty((*x.shape[:-1], out), x.dtype)
    rows = y.size // max(out, 1)
    if bias is not None:
        bias = bias if bias.is_contiguous() else bias.contiguous()
    product = native.linear_forward if rows > FEW_ROWS else product_of(rows)  # saves a call
    product(
        STORAGE[x.dtype],
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        rows,
        width,
        out,
    )
    return y


def linear_dgrad(dy: Tensor, weight: Tensor) -> Tensor:
    """See ``ops.linear_dgrad``."""
    dy = dy if dy.is_contiguous() else dy.contiguous()
    weight = weight if weight.is_contiguous() else weight.contiguous()
    out, width = weight.shape
    dx = memory.empty((*dy.shape[:-1], width), dy.dtype)
    rows = dx.size // max(width, 1)
    native.linear_dgrad(
        STORAGE[dy.dtype], dy.data_ptr(), weight.data_ptr(), dx.data_ptr(), rows, width, out
    )
    return dx


def linear_wgrad(dy: Tensor, x: Tensor) -> Tensor:
    """See ``ops.linear_wgrad``."""
    dy = dy if dy.is_contiguous() else dy.contiguous()
    x = x if x.is_contiguous() else x.contiguous()
    out, width = dy.shape[-1], x.shape[-1]
    dw = memory.empty((out, width), dy.dtype)
    rows = x.size // max(width, 1)
    native.linear_wgrad(
        STORAGE[dy.dtype], dy.data_ptr(), x.data_ptr(), dw.data_ptr(), rows, width, out
    )
    return dw


def linear_wgrad_accumulate(dy: Tensor, x: Tensor, main_grad: Tensor) -> None:
    """See ``ops.linear_wgrad_accumulate``."""
    dy = dy if dy.is_contiguous() else dy.contiguous()
    x = x if x.is_contiguous() else x.contiguous()
    # The one product that writes to an argument: main_grad is the buffer itself, never a copy.
    out, width = main_grad.shape
    native.linear_wgrad_accumulate(
        STORAGE[dy.dtype],
        dy.data_ptr(),
        x.data_ptr(),
        main_grad.data_ptr(),
        x.size // max(width, 1),
        width,
        out,
    )


def bias_grad(dy: Tensor) -> Tensor:
    """See ``ops.bias_grad``."""
    dy = dy if dy.is_contiguous() else dy.contiguous()
    out = dy.shape[-1]
    result = memory.empty((out,), dy.dtype)
    rows = dy.size // max(out, 1)
    native.bias_grad(STORAGE[dy.dtype], dy.data_ptr(), result.data_ptr(), rows, out)
    return result
