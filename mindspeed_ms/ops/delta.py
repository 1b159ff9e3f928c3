# SPDX-License-Identifier: Apache-2.0
"""Linear attention with a gated delta rule; exported by ``ops``."""

from __future__ import annotations

from mindspore import Tensor

from mindspeed_ms.ops import checks
from mindspeed_ms.ops.selection import chosen

__all__ = ["causal_conv_silu", "gated_delta_rule"]


def causal_conv_silu(x: Tensor, weight: Tensor) -> Tensor:
    """Silu of a convolution of each channel with the tokens up to its own.

    Shapes: x and result [S, B, C]; weight [C, 1, taps], the last tap for the token itself.
    """
    checks.floating("causal_conv_silu", x.dtype, weight.dtype)
    if x.ndim != 3 or weight.ndim != 3 or weight.shape[:2] != (x.shape[2], 1):
        raise ValueError(
            f"causal_conv_silu: x {tuple(x.shape)} and weight {tuple(weight.shape)}; they are "
            "[S, B, C] and [C, 1, taps]"
        )
    return chosen.kernels.causal_conv_silu(x, weight)


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_rate: Tensor, dt_bias: Tensor
) -> Tensor:
    """What the states of linear attention return to each token.

    A state S [c, d] of each value head begins at 0. For each token it decays, S *= exp(g) with g =
    -exp(log_rate) softplus(a + dt_bias); learns, S += k r (v - S^T k)^T with r = sigmoid(b); and
    returns S^T q / sqrt(c). Queries and keys are divided by their length first. All in fp32.

    Args:
        q: [S, B, K, c].
        k: [S, B, K, c].
        v: [S, B, V, d]; heads of values share those of keys in groups of V / K.
        a: [S, B, V].
        b: [S, B, V].
        log_rate: [V].
        dt_bias: [V].

    Returns:
        [S, B, V, d] in the type of v.

    Source: Yang et al., 2024 (Gated Delta Networks); Megatron-LM ``GatedDeltaNet`` (behaviour).
    """
    checks.floating("gated_delta_rule", q.dtype, k.dtype, v.dtype, a.dtype, b.dtype)
    checks.same_shape("gated_delta_rule", q.shape, k.shape)
    if v.shape[2] % q.shape[2]:
        raise ValueError(
            f"gated_delta_rule: {v.shape[2]} heads of values for {q.shape[2]} of keys; use a "
            "multiple"
        )
    return chosen.kernels.gated_delta_rule(q, k, v, a, b, log_rate, dt_bias)
