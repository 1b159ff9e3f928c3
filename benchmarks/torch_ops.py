# SPDX-License-Identifier: Apache-2.0
"""Torch's operations for the cases of ``ops.py``, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def _rotary(t: Tensor) -> Tensor:
    first, second = t.chunk(2, dim=-1)
    return t * 0.5 + torch.cat((-second, first), dim=-1) * 0.5


def _attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    q, k, v = (t.permute(1, 2, 0, 3) for t in (q, k, v))
    y = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True, dropout_p=dropout
    )
    return y.permute(2, 0, 1, 3)


def _softmax(scores: Tensor) -> Tensor:
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return functional.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)


def _adamw(p: Tensor, m: Tensor, v: Tensor, g: Tensor) -> None:
    step = torch.tensor(3.0)
    options = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "eps": 1e-8}
    torch._fused_adamw_([p], [g], [m], [v], [], [step], amsgrad=False, maximize=False, **options)


def _swiglu(t: Tensor) -> Tensor:
    gate, up = t.chunk(2, dim=-1)
    return functional.silu(gate) * up


_OPERATIONS: dict[str, Callable[..., Tensor | None]] = {
    "linear_forward": lambda x, w: x @ w.T,
    "linear_dgrad": lambda dy, w: dy @ w,
    "linear_wgrad_accumulate": lambda dy, x, g: g.addmm_(dy.T, x),
    "layer_norm": lambda x, w, b: functional.layer_norm(x, w.shape, w, b, 1e-5),
    "rms_norm": lambda x, w: functional.rms_norm(x, w.shape, w, 1e-5),
    "gelu erf + bias": lambda x, b: functional.gelu(x + b),
    "gelu tanh + bias": lambda x, b: functional.gelu(x + b, approximate="tanh"),
    "silu": functional.silu,
    "swiglu": _swiglu,
    "rotary": _rotary,
    "attention causal": _attention,
    "attention dropout": lambda q, k, v: _attention(q, k, v, 0.1),
    "softmax causal": _softmax,
    "dropout": lambda t: functional.dropout(t, 0.1),
    "bias_dropout_add": lambda x, b, r: r + functional.dropout(x + b, 0.1),
    "bias_grad": lambda dy: dy.sum(0),
    "adamw_ 8M": _adamw,
    "axpy_ 8M": lambda y, x: y.add_(x),
    "l2_norm_squared 8M": lambda x: x.square().sum(),
}


def runs(
    name: str, shapes: tuple[tuple[int, ...], ...], differentiable: bool
) -> tuple[Callable[[], object], Callable[[], object] | None] | None:
    """(forward, forward and backward or None) of a case; None when torch has no such operation."""
    call = _OPERATIONS.get(name) or _OPERATIONS.get(name.split()[0])
    if call is None:
        return None
    inputs = [torch.rand(shape) for shape in shapes]

    def forward() -> None:
        with torch.no_grad():
            call(*inputs)

    if not differentiable:
        return forward, None
    leaves = [t.clone().requires_grad_() for t in inputs]

    def both() -> None:
        result = call(*leaves)
        assert result is not None
        torch.autograd.grad(result, leaves, torch.ones_like(result))

    return forward, both
