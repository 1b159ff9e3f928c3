# SPDX-License-Identifier: Apache-2.0
"""In-place arithmetic on flat buffers."""

from __future__ import annotations

import math

from mindspore import Tensor

from mindspeed_ms.ops.cpu.library import STORAGE, native


def adamw_(  # noqa: PLR0913 - the public signature
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
) -> None:
    """See ``ops.adamw_``."""
    native.adamw(
        param.data_ptr(),
        grad.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        param.size,
        beta1,
        beta2,
        1.0 - beta1,
        1.0 - beta2,
        eps,
        1.0 - lr * weight_decay,
        lr / (1.0 - beta1**step),
        math.sqrt(1.0 - beta2**step),
        grad_scale,
    )


def axpy_(y: Tensor, x: Tensor, alpha: float) -> None:
    """See ``ops.axpy_``."""
    x = x if x.is_contiguous() else x.contiguous()
    native.axpy(STORAGE[x.dtype], y.data_ptr(), x.data_ptr(), y.size, alpha)


def scale_(t: Tensor, factor: float) -> None:
    """See ``ops.scale_``."""
    native.scale(t.data_ptr(), t.size, factor)


def zero_(t: Tensor) -> None:
    """See ``ops.zero_``."""
    native.zero(t.data_ptr(), t.nbytes)


def l2_norm_squared(t: Tensor) -> float:
    """See ``ops.l2_norm_squared``."""
    t = t if t.is_contiguous() else t.contiguous()
    return native.l2_norm_squared(STORAGE[t.dtype], t.data_ptr(), t.size)


def count_zeros(t: Tensor) -> int:
    """See ``ops.count_zeros``."""
    t = t if t.is_contiguous() else t.contiguous()
    return native.count_zeros(STORAGE[t.dtype], t.data_ptr(), t.size)


def copy_cast_(dst: Tensor, src: Tensor) -> None:
    """See ``ops.copy_cast_``."""
    src = src if src.is_contiguous() else src.contiguous()
    native.copy_cast(
        STORAGE[dst.dtype],
        STORAGE[src.dtype],
        dst.data_ptr(),
        src.data_ptr(),
        dst.size,
    )
