# SPDX-License-Identifier: Apache-2.0
"""Norms, activations and rotary embedding."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, mint, ops

from mindspeed_ms.ops.kernel_set import QUICK


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See ``ops.layer_norm``."""
    return mint.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ``ops.rms_norm``."""
    return ops.rms_norm(x, weight, eps)[0]


def branch(x: Tensor) -> tuple[Tensor, Tensor]:
    """See ``ops.branch``; the tape sums what comes back."""
    return x, x


def cast(x: Tensor, dtype: ms.Type) -> Tensor:
    """See ``ops.cast``."""
    return x.astype(dtype)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else mint.add(x, bias)


def gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """See ``ops.gelu``; the sum with the bias is rounded to the storage type."""
    return mint.nn.functional.gelu(_biased(x, bias), approximate=approximate)


def swiglu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.swiglu``; the sum with the bias is rounded to the storage type."""
    return ops.swiglu(_biased(x, bias), -1)


def silu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.silu``; the sum with the bias is rounded to the storage type."""
    return mint.nn.functional.silu(_biased(x, bias))


def relu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.relu``; the sum with the bias is rounded to the storage type."""
    return mint.nn.functional.relu(_biased(x, bias))


def squared_relu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.squared_relu``."""
    return mint.square(mint.nn.functional.relu(_biased(x, bias)))


def quick_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.quick_gelu``; the sum with the bias is rounded to the storage type."""
    return _quick_gelu(_biased(x, bias))


def _quick_gelu(z: Tensor, alpha: float = QUICK) -> Tensor:
    return mint.mul(z, mint.sigmoid(mint.mul(z, alpha)))


def gated(
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    limit: float | None,
    offset: float,
    alpha: float,
) -> Tensor:
    """See ``ops.gated``; composed, every step is rounded to the storage type."""
    gate, up = mint.chunk(_biased(x, bias), 2, -1)
    if limit is not None:
        gate, up = mint.clamp(gate, max=limit), mint.clamp(up, -limit, limit)
    if activation == "silu":
        gate = mint.nn.functional.silu(gate)
    elif activation == "quick_gelu":
        gate = _quick_gelu(gate, alpha)
    elif activation == "relu":
        gate = mint.nn.functional.relu(gate)
    else:
        form = "tanh" if activation == "fast_gelu" else "none"
        gate = mint.nn.functional.gelu(gate, approximate=form)
    return mint.mul(gate, mint.add(up, offset) if offset else up)


def sigmoid_gated(x: Tensor, gate: Tensor) -> Tensor:
    """See ``ops.sigmoid_gated``."""
    return mint.mul(x.astype(ms.float32), mint.sigmoid(gate.astype(ms.float32))).astype(x.dtype)


def scaled(x: Tensor, factor: float) -> Tensor:
    """See ``ops.scaled``."""
    return mint.mul(x, factor)


def clipped(x: Tensor, limit: float) -> Tensor:
    """See ``ops.clipped``."""
    return mint.clamp(x, -limit, limit)


def softcapped(x: Tensor, cap: float) -> Tensor:
    """See ``ops.softcapped``."""
    return mint.mul(mint.tanh(mint.div(x, cap)), cap)


def _turned_pairs(t: Tensor) -> Tensor:
    """(a, b) -> (-b, a) on neighbouring pairs."""
    pairs = t.reshape((*t.shape[:-1], t.shape[-1] // 2, 2))
    a, b = mint.narrow(pairs, -1, 0, 1), mint.narrow(pairs, -1, 1, 1)
    return mint.cat((mint.neg(b), a), -1).reshape(t.shape)


def rotary(t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """See ``ops.rotary``; the fused call wants the tables in the type of ``t``.

    Its interleaved mode takes one table for all sequences only; tables per sequence are composed.
    """
    rot, dim = cos.shape[-1], t.shape[-1]
    head = t if rot == dim else mint.narrow(t, -1, 0, rot)
    if interleaved and cos.shape[1] > 1:
        wide = head.astype(ms.float32)
        turned = mint.add(mint.mul(wide, cos), mint.mul(_turned_pairs(wide), sin)).astype(t.dtype)
    else:
        turned = ops.rotary_position_embedding(
            head.contiguous(), cos.astype(t.dtype), sin.astype(t.dtype), 1 if interleaved else 0
        )
    return turned if rot == dim else mint.cat((turned, mint.narrow(t, -1, rot, dim - rot)), -1)


def split_qkv(
    mixed: Tensor, num_groups: int, queries_per_group: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ops.split_qkv``."""
    seq, batch = mixed.shape[:2]
    rows = mixed.reshape((seq, batch, num_groups, queries_per_group + 2, head_dim))
    q, k, v = (
        mint.narrow(rows, 3, first, count).reshape((seq, batch, num_groups * count, head_dim))
        for first, count in (
            (0, queries_per_group),
            (queries_per_group, 1),
            (queries_per_group + 1, 1),
        )
    )
    return q, k, v
