# SPDX-License-Identifier: Apache-2.0
"""One tensor for two uses."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd
from mindspeed_ms.ops.portable.arrays import tensor_of, wide


class _Branch(autograd.Function):
    """Two views; the sum of their gradients is rounded once to the type of the tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.materialize_grads = False  # a use without a gradient adds nothing
        return x.view(x.shape), x.view(x.shape)

    @staticmethod
    def backward(ctx: Any, first: Tensor | None, second: Tensor | None) -> Tensor | None:
        if first is None or second is None:
            return second if first is None else first
        return tensor_of(wide(first) + wide(second), first.dtype)


def branch(x: Tensor) -> tuple[Tensor, Tensor]:
    """See ``ops.branch``."""
    return _Branch.apply(x)
