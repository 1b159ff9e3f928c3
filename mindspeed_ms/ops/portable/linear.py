# SPDX-License-Identifier: Apache-2.0
"""Products of a linear layer."""

from __future__ import annotations

from mindspore import Tensor

from mindspeed_ms.ops.portable.arrays import rows_of, store, sum_rows, tensor_of, wide


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.linear_forward``."""
    y = rows_of(wide(x)) @ wide(weight).T
    if bias is not None:
        y = y + wide(bias)
    return tensor_of(y.reshape(*x.shape[:-1], weight.shape[0]), x.dtype)


def linear_dgrad(dy: Tensor, weight: Tensor) -> Tensor:
    """See ``ops.linear_dgrad``."""
    dx = rows_of(wide(dy)) @ wide(weight)
    return tensor_of(dx.reshape(*dy.shape[:-1], weight.shape[1]), dy.dtype)


def linear_wgrad(dy: Tensor, x: Tensor) -> Tensor:
    """See ``ops.linear_wgrad``."""
    return tensor_of(rows_of(wide(dy)).T @ rows_of(wide(x)), dy.dtype)


def linear_wgrad_accumulate(dy: Tensor, x: Tensor, main_grad: Tensor) -> None:
    """See ``ops.linear_wgrad_accumulate``."""
    store(main_grad, wide(main_grad) + rows_of(wide(dy)).T @ rows_of(wide(x)))


def bias_grad(dy: Tensor) -> Tensor:
    """See ``ops.bias_grad``."""
    return tensor_of(sum_rows(wide(dy)), dy.dtype)
