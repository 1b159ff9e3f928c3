# SPDX-License-Identifier: Apache-2.0
"""In-place arithmetic on flat buffers."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import memory
from mindspeed_ms.ops.portable.arrays import store, wide


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
    g = wide(grad) * np.float32(grad_scale)
    m = wide(exp_avg) * np.float32(beta1) + g * np.float32(1.0 - beta1)
    v = wide(exp_avg_sq) * np.float32(beta2) + g * g * np.float32(1.0 - beta2)
    root = np.sqrt(v) / np.float32(math.sqrt(1.0 - beta2**step)) + np.float32(eps)
    decayed = wide(param) * np.float32(1.0 - lr * weight_decay)
    store(param, decayed - np.float32(lr / (1.0 - beta1**step)) * (m / root))
    store(exp_avg, m)
    store(exp_avg_sq, v)


def lion_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """See ``ops.lion_``."""
    g, m = wide(grad), wide(exp_avg)
    direction = np.sign(m * np.float32(beta1) + g * np.float32(1.0 - beta1))
    decayed = wide(param) * np.float32(1.0 - lr * weight_decay)
    store(param, decayed - np.float32(lr) * direction)
    store(exp_avg, m * np.float32(beta2) + g * np.float32(1.0 - beta2))


def divide_by_root_(x: Tensor, squares: Tensor, beta: float, eps: float) -> None:
    """See ``ops.divide_by_root_``."""
    values = wide(x)
    mean = wide(squares) * np.float32(beta) + values * values * np.float32(1.0 - beta)
    store(x, values / (np.sqrt(mean) + np.float32(eps)))
    store(squares, mean)


def axpy_(y: Tensor, x: Tensor, alpha: float) -> None:
    """See ``ops.axpy_``."""
    store(y, wide(y) + np.float32(alpha) * wide(x).reshape(y.shape))


def scale_(t: Tensor, factor: float) -> None:
    """See ``ops.scale_``."""
    store(t, wide(t) * np.float32(factor))


def zero_(t: Tensor) -> None:
    """See ``ops.zero_``."""
    memory.zero_(t)


def l2_norm_squared(t: Tensor) -> float:
    """See ``ops.l2_norm_squared``."""
    return float(np.sum(np.square(wide(t), dtype=np.float64)))


def count_zeros(t: Tensor) -> int:
    """See ``ops.count_zeros``."""
    values = wide(t)
    return int(values.size - np.count_nonzero(values))


def copy_cast_(dst: Tensor, src: Tensor) -> None:
    """See ``ops.copy_cast_``."""
    store(dst, wide(src))
