# SPDX-License-Identifier: Apache-2.0
"""Another storage type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import Tensor

from mindspeed_ms.backend import autograd
from mindspeed_ms.ops.portable.arrays import tensor_of, wide

Convert = Callable[[Tensor, ms.Type], Tensor]


class Cast(autograd.Function):
    """``convert`` forward, and the gradient back to the type of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: ms.Type, convert: Convert) -> Tensor:
        """``convert(x, dtype)``."""
        ctx.dtype, ctx.convert = x.dtype, convert
        return convert(x, dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        """The same conversion to the type of ``x``."""
        return ctx.convert(dy, ctx.dtype), None, None


def _converted(x: Tensor, dtype: ms.Type) -> Tensor:
    return tensor_of(wide(x), dtype)


def cast(x: Tensor, dtype: ms.Type) -> Tensor:
    """See ``ops.cast``."""
    return Cast.apply(x, dtype, _converted)
