"""Attention and the masked softmax of the unfused path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.portable.arrays import Array, tensor_of, wide
from mindspeed_ms.ops.portable.dropout import draw, keep_scale

Context = Any


def hidden_positions(rows: int, columns: int, mask: Tensor | None, causal: bool) -> Array | None:
    """Bool array that broadcasts to [B, N, rows, columns], True = hidden; None: all visible.

    Causal: the last row sees the last column, each earlier row one column less.
    """
    hidden = None if mask is None else memory.as_numpy(memory.contiguous(mask))
    if causal:
        later = np.arange(columns)[None, :] > np.arange(rows)[:, None] + (columns - rows)
        hidden = later if hidden is None else hidden | later
    return hidden


def masked_softmax(scores: Array, hidden: Array | None) -> Array:
    """Softmax over the last dimension; hidden positions and rows without any visible one give 0."""
    if scores.size == 0:
        return scores
    if hidden is not None:
        scores = np.where(hidden, np.float32(-np.inf), scores)
    row_max = scores.max(axis=-1, keepdims=True)
    row_max = np.where(np.isneginf(row_max), np.float32(0), row_max)
    weights = np.exp(scores - row_max)
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total == 0, np.float32(1), total)


def _softmax_grad(probs: Array, dprobs: Array) -> Array:
    return probs * (dprobs - (probs * dprobs).sum(axis=-1, keepdims=True))


class _Softmax(autograd.Function):
    """``p = softmax(scale * scores)``; ``dscores = scale * p * (dp - sum(p * dp))``."""

    @staticmethod
    def forward(
        ctx: Context, scores: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        rows, columns = (1, *scores.shape)[-2:]
        hidden = hidden_positions(rows, columns, mask, causal)
        probs = tensor_of(masked_softmax(wide(scores) * np.float32(scale), hidden), scores.dtype)
        ctx.save_for_backward(probs)
        ctx.scale = scale
        return probs

    @staticmethod
    def backward(ctx: Context, dprobs: Tensor) -> tuple[Tensor | None, ...]:
        (probs,) = ctx.saved_tensors
        dscores = _softmax_grad(wide(probs), wide(dprobs)) * np.float32(ctx.scale)
        return tensor_of(dscores, dprobs.dtype), None, None, None


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one attention call is given besides its tensors; dropout replays from (seed, offset)."""

    scale: float
    causal: bool
    dropout_p: float
    seed: int
    offset: int


def attention_call(
    q: Tensor, k: Tensor, scale: float, causal: bool, dropout_p: float, generator: Generator | None
) -> AttentionCall:
    """Reserve the dropout words of one call, one per position in [B, N, S, S']."""
    seed = offset = 0
    if dropout_p > 0.0 and generator is not None:
        seed, offset = draw(generator, q.shape[0] * q.shape[1] * q.shape[2] * k.shape[0])
    return AttentionCall(scale, causal, dropout_p, seed, offset)


class _Attention(autograd.Function):
    """``o = (p * keep) v`` with ``p = softmax(scale * q k^T)``, per head.

    ``dv = (p * keep)^T do``, ``dp = (do v^T) * keep``, ``ds = scale * p * (dp - sum(p * dp))``,
    ``dq = ds k``, ``dk = ds^T q``; dk and dv add over the query heads of a group.

    Shapes: inside, q is [B, G, R * S, D] for R query heads per group, so that the products need
    no repeated keys; p is [B, G, R * S, S'].
    """

    @staticmethod
    def forward(
        ctx: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, call: AttentionCall
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.call = call
        probs, keep = _probabilities(q, k, mask, call)
        weights = probs if keep is None else probs * keep
        return tensor_of(_ungrouped(weights @ _grouped(v, v.shape[2]), q).reshape(_out(q)), q.dtype)

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        groups, call = k.shape[2], ctx.call
        probs, keep = _probabilities(q, k, mask, call)
        grad = _grouped(dout, groups, q.shape)
        weights = probs if keep is None else probs * keep
        dv = weights.swapaxes(-1, -2) @ grad
        dprobs = grad @ _grouped(v, groups).swapaxes(-1, -2)
        dscores = _softmax_grad(probs, dprobs if keep is None else dprobs * keep)
        dscores = dscores * np.float32(call.scale)
        dq = _ungrouped(dscores @ _grouped(k, groups), q)
        dk = dscores.swapaxes(-1, -2) @ _grouped(q, groups)
        return (
            tensor_of(dq, q.dtype),
            tensor_of(_ungrouped(dk, k), k.dtype),
            tensor_of(_ungrouped(dv, v), v.dtype),
            None,
            None,
        )


def _out(q: Tensor) -> tuple[int, int, int]:
    return q.shape[0], q.shape[1], q.shape[2] * q.shape[3]


def _grouped(t: Tensor, groups: int, shape: tuple[int, ...] | None = None) -> Array:
    """[S, B, N, D] -> [B, G, R * S, D]."""
    s, b, n, d = t.shape if shape is None else shape
    split = wide(t).reshape(s, b, groups, n // groups, d)
    return np.ascontiguousarray(split.transpose(1, 2, 3, 0, 4)).reshape(
        b, groups, n // groups * s, d
    )


def _ungrouped(grouped: Array, like: Tensor) -> Array:
    """[B, G, R * S, D] -> [S, B, N, D] with the sizes of ``like``."""
    s, b, n, d = like.shape
    groups = grouped.shape[1]
    split = grouped.reshape(b, groups, n // groups, s, d).transpose(3, 0, 1, 2, 4)
    return split.reshape(s, b, n, d)


def _probabilities(
    q: Tensor, k: Tensor, mask: Tensor | None, call: AttentionCall
) -> tuple[Array, Array | None]:
    """(softmax [B, G, R * S, S'], dropout factors of the same shape or None)."""
    rows, batch, heads, _ = q.shape
    columns, _, groups, _ = k.shape
    scores = _grouped(q, groups) @ _grouped(k, groups).swapaxes(-1, -2) * np.float32(call.scale)
    by_head = scores.reshape(batch, heads, rows, columns)
    probs = masked_softmax(by_head, hidden_positions(rows, columns, mask, call.causal))
    keep = None
    if call.dropout_p > 0.0:
        keep = keep_scale(call.dropout_p, call.seed, call.offset, probs.shape)
        keep = keep.reshape(scores.shape)
    return probs.reshape(scores.shape), keep


def softmax(scores: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """See ``ops.softmax``."""
    return _Softmax.apply(scores, mask, causal, scale)


def attention(  # noqa: PLR0913 - the public signature
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool,
    mask: Tensor | None,
    dropout_p: float,
    generator: Generator | None,
) -> Tensor:
    """See ``ops.attention``."""
    call = attention_call(q, k, scale, causal, dropout_p, generator)
    return _Attention.apply(q, k, v, mask, call)
