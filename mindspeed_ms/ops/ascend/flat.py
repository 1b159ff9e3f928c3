# SPDX-License-Identifier: Apache-2.0
"""In-place arithmetic on flat buffers."""

from __future__ import annotations

import functools

import mindspore as ms
from mindspore import Tensor, mint
from mindspore.ops import auto_generate

from mindspeed_ms.backend import autograd, memory


@functools.lru_cache(maxsize=1)
def _fused_adamw() -> auto_generate.AdamW:
    return auto_generate.AdamW()


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
    """See ``ops.adamw_``; the kernel is the one behind ``mint.optim.AdamW``.

    That optimizer passes the step as a float tensor and the second moment in place of the unused
    maximum, and so does this call.
    """
    with autograd.no_grad():
        if grad_scale != 1.0:
            grad = mint.mul(grad, grad_scale)
        counted = Tensor(float(step), ms.float32)
        _fused_adamw()(
            param,
            exp_avg,
            exp_avg_sq,
            exp_avg_sq,
            grad,
            counted,
            lr,
            beta1,
            beta2,
            weight_decay,
            eps,
            False,
            False,
        )


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
    with autograd.no_grad():
        direction = mint.sign(mint.add(mint.mul(exp_avg, beta1), grad, alpha=1.0 - beta1))
        param.mul_(1.0 - lr * weight_decay)
        param.add_(direction, alpha=-lr)
        exp_avg.mul_(beta2)
        exp_avg.add_(grad, alpha=1.0 - beta2)


def divide_by_root_(x: Tensor, squares: Tensor, beta: float, eps: float) -> None:
    """See ``ops.divide_by_root_``."""
    with autograd.no_grad():
        squares.mul_(beta)
        squares.add_(mint.square(x), alpha=1.0 - beta)
        x.div_(mint.add(mint.sqrt(squares), eps))


def axpy_(y: Tensor, x: Tensor, alpha: float) -> None:
    """See ``ops.axpy_``."""
    with autograd.no_grad():
        y.add_(x.astype(ms.float32).reshape(y.shape), alpha=alpha)


def scale_(t: Tensor, factor: float) -> None:
    """See ``ops.scale_``."""
    with autograd.no_grad():
        t.mul_(factor)


def zero_(t: Tensor) -> None:
    """See ``ops.zero_``."""
    memory.zero_(t)


def l2_norm_squared(t: Tensor) -> float:
    """See ``ops.l2_norm_squared``; accumulated in fp32, since the device has no fast fp64."""
    with autograd.no_grad():
        return float(mint.sum(mint.square(t.astype(ms.float32))).item())


def count_zeros(t: Tensor) -> int:
    """See ``ops.count_zeros``."""
    with autograd.no_grad():
        return int(mint.sum(mint.eq(t.astype(ms.float32), 0).astype(ms.int32)).item())


def copy_cast_(dst: Tensor, src: Tensor) -> None:
    """See ``ops.copy_cast_``."""
    with autograd.no_grad():
        dst.copy_(src.astype(dst.dtype).reshape(dst.shape))
