# SPDX-License-Identifier: Apache-2.0
"""Attention and the masked softmax of the unfused path."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor
from mindspore.common.dtype import Type

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.attention_call import AttentionCall, Places
from mindspeed_ms.ops.portable.arrays import Array, store, tensor_of, wide
from mindspeed_ms.ops.portable.dropout import keep_scale, keep_scale_of_words

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


class _Attention(autograd.Function):
    """Keeps its arguments only; backward computes the scores again."""

    @staticmethod
    def forward(  # noqa: PLR0913 - the context and the arguments of ``attention``
        ctx: Context,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        sinks: Tensor | None,
        call: AttentionCall,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask, sinks)
        ctx.call = call
        scores, _ = _scores(q, k, mask, call)
        _note_largest(scores, call)
        probs, _ = _probabilities(scores, sinks, call)
        return tensor_of(_weighted(probs, _keep(q, k, call), q, v), q.dtype)

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, sinks = ctx.saved_tensors
        scores, slope = _scores(q, k, mask, ctx.call)
        probs, at_sink = _probabilities(scores, sinks, ctx.call)
        *grads, delta = _gradients(q, k, v, dout, (probs, slope), None, ctx.call)
        stored = [tensor_of(g, t.dtype) for g, t in zip(grads, (q, k, v), strict=True)]
        dsinks = None
        if sinks is not None:
            dsinks = tensor_of(-(at_sink * delta).sum(axis=(0, 2)), sinks.dtype)
        return (*stored, None, dsinks, None)


def attention(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    call: AttentionCall,
) -> Tensor:
    """See ``ops.attention``."""
    return _Attention.apply(q, k, v, mask, sinks, call)


def attention_accumulate(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    call: AttentionCall,
) -> None:
    """See ``ops.attention_accumulate``: both results weighted by their sums of exponentials."""
    scores, _ = _scores(q, k, mask, call)
    _note_largest(scores, call)
    part = _weighted(_probabilities(scores, None, call)[0], _keep(q, k, call), q, v)
    part_lse = _log_sum_exp(scores)
    before = wide(lse)
    after = np.logaddexp(before, part_lse)
    known = np.where(np.isneginf(after), np.float32(0), after)
    shares = [np.exp(one - known)[..., None] for one in (before, part_lse)]
    split = (*lse.shape, v.shape[3])
    merged = wide(out).reshape(split) * shares[0] + part.reshape(split) * shares[1]
    store(out, merged.astype(np.float32))
    store(lse, after.astype(np.float32))


def attention_backward_accumulate(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    call: AttentionCall,
) -> None:
    """See ``ops.attention_backward_accumulate``."""
    scores, slope = _scores(q, k, mask, call)
    seen = wide(lse).transpose(1, 2, 0)[..., None]
    probs = np.exp(scores - np.where(np.isneginf(seen), np.float32(np.inf), seen))
    *parts, _ = _gradients(q, k, v, dout, (probs, slope), out, call)
    for grad, part in zip(grads, parts, strict=True):
        store(grad, wide(grad) + part)


def attention_sinks_grad(out: Tensor, dout: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """See ``ops.attention_sinks_grad``."""
    delta = (wide(out) * wide(dout)).reshape((*lse.shape, -1)).sum(axis=-1)  # [S, B, N]
    return tensor_of(-(np.exp(wide(sinks) - wide(lse)) * delta).sum(axis=(0, 1)), sinks.dtype)


def decode_attention(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    slots: Places | None,
    call: AttentionCall,
) -> Tensor:
    """See ``ops.decode_attention``: what lies outside the ranges is cleared before it is used."""
    k, v = (_existing(t, slots, call) for t in (k, v))
    scores, _ = _scores(q, k, None, call)
    return tensor_of(_weighted(_probabilities(scores, sinks, call)[0], None, q, v), q.dtype)


def _existing(cache: Tensor, slots: Places | None, call: AttentionCall) -> Tensor:
    """Keys or values [S', B, G, D] of a cache, zeros where none exist."""
    array = wide(cache)
    rows = array if slots is None else array[slots].swapaxes(0, 1)
    if call.ranges is None:
        return tensor_of(rows)
    place = np.arange(len(rows))[:, None]
    exists = (place >= call.ranges.starts) & (place < call.ranges.stops)
    return tensor_of(np.where(exists[..., None, None], rows, np.float32(0)))


def _out(q: Tensor, v: Tensor) -> tuple[int, int, int]:
    return q.shape[0], q.shape[1], q.shape[2] * v.shape[3]


def _grouped(t: Tensor, groups: int, shape: tuple[int, ...] | None = None) -> Array:
    """[S, B, N, D] -> [B, G, R * S, D] for R query heads per group: keys need no repetition."""
    s, b, n, d = t.shape if shape is None else shape
    split = wide(t).reshape(s, b, groups, n // groups, d)
    return np.ascontiguousarray(split.transpose(1, 2, 3, 0, 4)).reshape(
        b, groups, n // groups * s, d
    )


def _ungrouped(grouped: Array, shape: tuple[int, ...]) -> Array:
    """[B, G, R * S, D] -> [S, B, N, D], the shape given."""
    s, b, n, d = shape
    groups = grouped.shape[1]
    split = grouped.reshape(b, groups, n // groups, s, d).transpose(3, 0, 1, 2, 4)
    return split.reshape(s, b, n, d)


def _rounded(array: Array, dtype: Type) -> Array:
    return wide(tensor_of(array, dtype))


def _scores(
    q: Tensor, k: Tensor, mask: Tensor | None, call: AttentionCall
) -> tuple[Array, Array | None]:
    """Scores [B, N, S, S'], -infinity where a key is hidden, and their slopes by the scaled ones.

    No slopes: all are 1.
    """
    rows, batch, heads, _ = q.shape
    columns, _, groups, _ = k.shape
    scores = _grouped(q, groups) @ _grouped(k, groups).swapaxes(-1, -2) * np.float32(call.scale)
    scores, slope = scores.reshape(batch, heads, rows, columns), None
    if call.softcap is not None:
        share = np.tanh(scores / np.float32(call.softcap))
        scores, slope = share * np.float32(call.softcap), 1 - share * share
    distances = call.alibi(rows, columns)
    if distances is not None:
        scores = scores + distances
    if call.bias is not None:
        scores = scores + wide(call.bias)
    if call.storage is not None:
        divisor = np.float32(call.storage.divisor)
        scores = _rounded(scores / divisor, call.storage.dtype) * divisor
    for hidden in (hidden_positions(rows, columns, mask, False), call.hidden(rows, columns)):
        if hidden is not None:
            scores = np.where(hidden, np.float32(-np.inf), scores)
    return scores, slope


def _note_largest(scores: Array, call: AttentionCall) -> None:
    """Raise ``call.max_logits`` to the largest score of each head."""
    if call.max_logits is not None and scores.size:
        store(call.max_logits, np.maximum(wide(call.max_logits), scores.max(axis=(0, 2, 3))))


def _probabilities(scores: Array, sinks: Tensor | None, call: AttentionCall) -> tuple[Array, Array]:
    """Softmax [B, N, S, S'] with a further logit per head, and what that one gets, [B, N, S]."""
    if sinks is None:
        probs, at_sink = masked_softmax(scores, None), np.zeros(scores.shape[:-1], np.float32)
    else:
        logits = np.broadcast_to(wide(sinks)[None, :, None, None], (*scores.shape[:-1], 1))
        together = masked_softmax(np.concatenate((scores, logits), axis=-1), None)
        probs, at_sink = together[..., :-1], together[..., -1]
    if call.storage is not None and call.storage.weights:
        probs = _rounded(probs, call.storage.dtype)
    return probs, at_sink


def _log_sum_exp(scores: Array) -> Array:
    """[S, B, N]; -infinity for a query that sees no key."""
    if scores.shape[-1] == 0:
        return np.full((scores.shape[2], *scores.shape[:2]), -np.inf, np.float32)
    top = scores.max(axis=-1)
    safe = np.where(np.isneginf(top), np.float32(0), top)
    with np.errstate(divide="ignore"):
        lse = np.log(np.exp(scores - safe[..., None]).sum(axis=-1)) + safe
    return lse.transpose(2, 0, 1)


def _keep(q: Tensor, k: Tensor, call: AttentionCall) -> Array | None:
    """Dropout factors [B, N, S, S']; None: nothing is dropped."""
    if call.dropout is None:
        return None
    drop, (rows, batch, heads, _) = call.dropout, q.shape
    if drop.places is None:
        shape = (batch, heads, rows, k.shape[0])
        return keep_scale(drop.probability, drop.seed, drop.offset, shape)
    words = drop.offset + drop.places.words(batch, heads)
    return keep_scale_of_words(drop.probability, drop.seed, words)


def _weighted(probs: Array, keep: Array | None, q: Tensor, v: Tensor) -> Array:
    """Values by weight, [S, B, N * E]."""
    groups = v.shape[2]
    weights = _by_group(probs if keep is None else probs * keep, groups)
    s, b, width = _out(q, v)
    return _ungrouped(weights @ _grouped(v, groups), (*q.shape[:3], v.shape[3])).reshape(
        s, b, width
    )


def _by_group(scores: Array, groups: int) -> Array:
    """[B, N, S, S'] -> [B, G, R * S, S']."""
    batch, heads, rows, columns = scores.shape
    return scores.reshape(batch, groups, heads // groups * rows, columns)


def _gradients(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    softmaxed: tuple[Array, Array | None],
    out: Tensor | None,
    call: AttentionCall,
) -> tuple[Array, Array, Array, Array]:
    """``dv = (p * keep)^T do``, ``dp = (do v^T) * keep``, ``ds = scale * slope * p * (dp - d)``
    with ``d = do . o``, ``dq = ds k``, ``dk = ds^T q``; dk and dv add over the heads of a group.

    d, returned last, [B, N, S], is also the sum of p * dp over the row; o (of all keys) is given
    where p is only a part of the row.
    """  # noqa: D205 - the formulas are the summary
    groups, (probs, slope) = k.shape[2], softmaxed
    keep = _keep(q, k, call)
    wide_shape = (*q.shape[:3], v.shape[3])
    grad = _grouped(dout, groups, wide_shape)
    weights = _by_group(probs if keep is None else probs * keep, groups)
    dv = weights.swapaxes(-1, -2) @ grad
    dprobs = (grad @ _grouped(v, groups).swapaxes(-1, -2)).reshape(probs.shape)
    dprobs = dprobs if keep is None else dprobs * keep
    if out is None:
        delta = (probs * dprobs).sum(axis=-1)
    else:
        delta = (wide(out) * wide(dout)).reshape(wide_shape).sum(axis=-1).transpose(1, 2, 0)
    dscores = probs * (dprobs - delta[..., None])
    dscores = dscores if slope is None else dscores * slope
    dscores = _by_group(dscores * np.float32(call.scale), groups)
    dq = _ungrouped(dscores @ _grouped(k, groups), q.shape)
    dk = _ungrouped(dscores.swapaxes(-1, -2) @ _grouped(q, groups), k.shape)
    return dq, dk, _ungrouped(dv, v.shape), delta


def softmax(scores: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """See ``ops.softmax``."""
    return _Softmax.apply(scores, mask, causal, scale)
