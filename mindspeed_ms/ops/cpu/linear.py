"""Products of a linear layer."""

from __future__ import annotations

from mindspore import Tensor

from mindspeed_ms.backend import memory
from mindspeed_ms.ops.cpu.library import STORAGE, library


def _rows(t: Tensor) -> int:
    return memory.num_elements(t) // t.shape[-1] if t.shape[-1] else 0


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.linear_forward``."""
    x, weight = memory.contiguous(x), memory.contiguous(weight)
    out, width = weight.shape
    y = memory.empty((*x.shape[:-1], out), x.dtype)
    rows = memory.num_elements(y) // out if out else 0
    if bias is not None:
        bias = memory.contiguous(bias)
    library().linear_forward(
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
    dy, weight = memory.contiguous(dy), memory.contiguous(weight)
    out, width = weight.shape
    dx = memory.empty((*dy.shape[:-1], width), dy.dtype)
    rows = memory.num_elements(dx) // width if width else 0
    library().linear_dgrad(
        STORAGE[dy.dtype], dy.data_ptr(), weight.data_ptr(), dx.data_ptr(), rows, width, out
    )
    return dx


def linear_wgrad(dy: Tensor, x: Tensor) -> Tensor:
    """See ``ops.linear_wgrad``."""
    dy, x = memory.contiguous(dy), memory.contiguous(x)
    out, width = dy.shape[-1], x.shape[-1]
    dw = memory.empty((out, width), dy.dtype)
    library().linear_wgrad(
        STORAGE[dy.dtype], dy.data_ptr(), x.data_ptr(), dw.data_ptr(), _rows(x), width, out
    )
    return dw


def linear_wgrad_accumulate(dy: Tensor, x: Tensor, main_grad: Tensor) -> None:
    """See ``ops.linear_wgrad_accumulate``."""
    dy, x = memory.contiguous(dy), memory.contiguous(x)
    library().linear_wgrad_accumulate(
        STORAGE[dy.dtype],
        dy.data_ptr(),
        x.data_ptr(),
        main_grad.data_ptr(),
        _rows(x),
        x.shape[-1],
        dy.shape[-1],
    )


def bias_grad(dy: Tensor) -> Tensor:
    """See ``ops.bias_grad``."""
    dy = memory.contiguous(dy)
    out = dy.shape[-1]
    result = memory.empty((out,), dy.dtype)
    library().bias_grad(STORAGE[dy.dtype], dy.data_ptr(), result.data_ptr(), _rows(dy), out)
    return result
