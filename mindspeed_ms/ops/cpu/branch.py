# SPDX-License-Identifier: Apache-2.0
"""One tensor for two uses."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.cpu.library import STORAGE, native


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
        first, second = first.contiguous(), second.contiguous()
        # A new tensor, not first += second: one gradient may have been handed to several readers.
        total = memory.empty(first.shape, first.dtype)
        native.add(
            STORAGE[first.dtype],
            first.data_ptr(),
            second.data_ptr(),
            total.data_ptr(),
            total.size,
        )
        return total


def branch(x: Tensor) -> tuple[Tensor, Tensor]:
    """See ``ops.branch``."""
    return _Branch.apply(x)
