# SPDX-License-Identifier: Apache-2.0
"""Gated units, and what one number does to every element; exported by ``ops``."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from mindspore import Tensor

from mindspeed_ms.ops import checks
from mindspeed_ms.ops.kernel_set import QUICK
from mindspeed_ms.ops.selection import chosen

__all__ = [
    *("Gate", "clipped", "gated", "quick_gelu", "relu", "scaled", "sigmoid_gated", "softcapped"),
    "swiglu",
]

Gate: TypeAlias = Literal["gelu", "fast_gelu", "silu", "quick_gelu", "relu"]
"""What is done to the gate: gelu in its erf form, in its tanh form, silu, or z * sigmoid(1.702 z).
"""


def quick_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``z * sigmoid(1.702 z)`` with ``z = x + bias``. Shapes: x and result [..., H]; bias [H].

    Source: Hendrycks and Gimpel, 2016.
    """
    checks.floating("quick_gelu", x.dtype)
    if bias is not None:
        checks.bias("quick_gelu", x.shape[-1], x.dtype, bias.shape, bias.dtype)
    return chosen.kernels.quick_gelu(x, bias)


def relu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``max(z, 0)`` with ``z = x + bias``. Shapes: x and result [..., H]; bias [H]."""
    checks.floating("relu", x.dtype)
    if bias is not None:
        checks.bias("relu", x.shape[-1], x.dtype, bias.shape, bias.dtype)
    return chosen.kernels.relu(x, bias)


def gated(
    x: Tensor,
    bias: Tensor | None,
    activation: Gate,
    *,
    limit: float | None = None,
    offset: float = 0.0,
    alpha: float = QUICK,
) -> Tensor:
    """Gated unit ``activation(gate) * (up + offset)`` of the halves of ``x + bias``.

    Args:
        x: [..., 2H]; the first half is the gate.
        bias: [2H].
        activation: of the gate.
        limit: the gate is at most this, and up lies between this and its negative.
        offset: added to up.
        alpha: factor within the sigmoid of quick_gelu.

    Returns:
        [..., H].

    Source: Shazeer, 2020; the limits as in Megatron-core's ``activation_func_clamp_value``.
    """
    checks.floating("gated", x.dtype)
    if bias is not None:
        checks.bias("gated", x.shape[-1], x.dtype, bias.shape, bias.dtype)
    if x.shape[-1] % 2:
        raise ValueError(
            f"gated: last dimension {x.shape[-1]} is odd; it holds gate and up halves of one size"
        )
    if activation not in get_args(Gate):
        raise ValueError(f"gated: activation {activation!r}; use {', '.join(get_args(Gate))}")
    return chosen.kernels.gated(x, bias, activation, limit, offset, alpha)


def sigmoid_gated(x: Tensor, gate: Tensor) -> Tensor:
    """``x * sigmoid(gate)`` in fp32. Shapes: x, gate and result [...].

    Source: Qiu et al., 2025 (gated attention).
    """
    checks.floating("sigmoid_gated", x.dtype, gate.dtype)
    checks.same_shape("sigmoid_gated", x.shape, gate.shape)
    return chosen.kernels.sigmoid_gated(x, gate)


def scaled(x: Tensor, factor: float) -> Tensor:
    """Every element times a number. Shapes: x and result of any shape."""
    checks.floating("scaled", x.dtype)
    return chosen.kernels.scaled(x, factor)


def clipped(x: Tensor, limit: float) -> Tensor:
    """``min(max(x, -limit), limit)``. Shapes: x and result of any shape.

    What lies beyond the limit has no gradient.
    """
    checks.floating("clipped", x.dtype)
    return chosen.kernels.clipped(x, limit)


def softcapped(x: Tensor, cap: float) -> Tensor:
    """``cap * tanh(x / cap)``. Shapes: x and result of any shape.

    Source: Gemma Team, 2024 (Gemma 2).
    """
    checks.floating("softcapped", x.dtype)
    return chosen.kernels.softcapped(x, cap)


def swiglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gated unit ``silu(gate) * up`` where ``gate, up`` are the halves of ``x + bias``.

    Shapes: x [..., 2H], bias [2H], result [..., H]; the first half is the gate.
    Source: Shazeer, 2020.
    """
    checks.floating("swiglu", x.dtype)
    if bias is not None:
        checks.bias("swiglu", x.shape[-1], x.dtype, bias.shape, bias.dtype)
    if x.shape[-1] % 2:
        raise ValueError(
            f"swiglu: last dimension {x.shape[-1]} is odd; it holds gate and up halves of one size"
        )
    return chosen.kernels.swiglu(x, bias)
