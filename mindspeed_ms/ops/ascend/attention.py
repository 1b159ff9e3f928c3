# SPDX-License-Identifier: Apache-2.0
"""Attention through FlashAttentionScore, and the masked softmax of the unfused path."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops
from mindspore.ops import auto_generate

from mindspeed_ms.backend import autograd
from mindspeed_ms.ops.ascend import composed_attention as composed
from mindspeed_ms.ops.ascend.composed_attention import (
    BEYOND_SCORES,
    by_head,
    by_row,
    finite,
    hidden_of_call,
    keep,
    one_for_zero,
    raise_largest,
    sink_logits,
)
from mindspeed_ms.ops.attention_call import AttentionCall, Documents, Places

_FUSED_TYPES = (ms.bfloat16, ms.float16)
_FUSED_DIM = 16
_LARGEST_DIM = 512
_COMPRESSED = 2048
_NO_MASK, _ALL_MASK, _RIGHT_DOWN_CAUSAL, _BAND = 0, 1, 3, 4
_NO_LIMIT = 2**31 - 1
_MAX_SEQUENCES = 1024
"""Sequences of one call in layout TND."""

_STATISTIC_COPIES = 8
"""The kernel holds every maximum and every sum this many times side by side."""

Context = Any


@functools.lru_cache(maxsize=1)
def _compressed_mask() -> Tensor:
    """The triangle that the causal and the band mode of the kernel expect, whatever the length."""
    return Tensor(np.triu(np.ones((_COMPRESSED, _COMPRESSED), np.uint8), 1))


def _hidden(rows: int, columns: int, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Bool, True = hidden; broadcasts to [B, N, rows, columns]."""
    if not causal:
        return mask
    later = Tensor(np.triu(np.ones((rows, columns), np.bool_), 1 + columns - rows))
    return later if mask is None else mint.logical_or(mask, later)


def softmax(scores: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """See ``ops.softmax``; computed in fp32."""
    wide = mint.mul(scores.astype(ms.float32), scale)
    rows, columns = (1, *scores.shape)[-2:]
    hidden = _hidden(rows, columns, mask, causal)
    if hidden is not None:
        wide = wide.masked_fill(hidden, -3.0e38)
    probs = mint.nn.functional.softmax(wide, -1)
    if hidden is not None:
        probs = mint.mul(probs, mint.logical_not(hidden).astype(ms.float32))
    return probs.astype(scores.dtype)


def _packed_bits(kept: Tensor) -> Tensor:
    """uint8 [B, N, S, S' / 8] from one bool per score, the first score in the lowest bit."""
    *shape, columns = kept.shape
    weights = Tensor(np.array([1 << bit for bit in range(8)], np.int32))
    bits = kept.reshape((*shape, columns // 8, 8)).astype(ms.int32)
    return mint.sum(mint.mul(bits, weights), -1).astype(ms.uint8)


def _is_fused(q: Tensor, v: Tensor, call: AttentionCall) -> bool:
    """Whether the kernel takes the type, the head sizes and what is done to the scores."""
    dim = q.shape[3]
    takes_heads = dim % _FUSED_DIM == 0 and dim <= _LARGEST_DIM and v.shape[3] == dim
    takes_scores = call.softcap is None and call.slopes is None and call.storage is None
    takes_bias = call.bias is None or call.bias.dtype == q.dtype
    return q.dtype in _FUSED_TYPES and takes_heads and takes_scores and takes_bias


@dataclass(frozen=True, slots=True)
class _Launch:
    """Arguments of the fused kernel besides q, k and v in layout SBH."""

    drop_mask: Tensor | None
    attn_mask: Tensor | None
    real_shift: Tensor | None
    mode: int
    pre_tokens: int
    next_tokens: int
    keep: float
    scale: float

    @property
    def blind(self) -> Tensor | None:
        """Bool [S, B, 1], True for queries that see no key; None: it is known that all see some.

        What the kernel gives for those is not documented, so the callers replace it.
        """
        if self.mode != _ALL_MASK:
            return None
        return mint.permute(mint.all(self.attn_mask, -1), (2, 0, 1))

    def options(self, heads: int) -> tuple[Any, ...]:
        """Of the kernels of forward and of backward."""
        return (heads, self.keep, self.scale, self.pre_tokens, self.next_tokens, self.mode)


def _launch(q: Tensor, k: Tensor, mask: Tensor | None, call: AttentionCall) -> _Launch:
    """How the fused kernel is asked.

    Raises:
        ValueError: dropout with a number of keys that is not a multiple of 8 (the kernel reads the
            mask as bits).
    """
    kept = keep(q, k, call)
    if kept is not None and k.shape[0] % 8:
        raise ValueError(
            f"attention: dropout with {k.shape[0]} keys; the kernel needs a multiple of 8: pad the "
            "sequence"
        )
    attn_mask, mode, pre_tokens, next_tokens = _masking(q, k, mask, call)
    return _Launch(
        drop_mask=None if kept is None else _packed_bits(kept),
        attn_mask=attn_mask,
        real_shift=_shift(q, call),
        mode=mode,
        pre_tokens=pre_tokens,
        next_tokens=next_tokens,
        keep=1.0 if call.dropout is None else 1.0 - call.dropout.probability,
        scale=call.scale,
    )


def _masking(
    q: Tensor, k: Tensor, mask: Tensor | None, call: AttentionCall
) -> tuple[Tensor | None, int, int, int]:
    """Mask, sparse mode, tokens before and after its place that a query sees.

    The band of the kernel begins at the lower right corner: its last query stands at the last key.
    A band in which some query sees no key, or one with limits below 0, becomes a dense mask.
    """
    queries, keys = q.shape[0], k.shape[0]
    if mask is None and call.ranges is None and call.documents is None:
        band = call.band(queries, keys)
        shift = keys - queries - band.offset
        before = _NO_LIMIT if band.left is None else band.left + shift
        after = _NO_LIMIT if band.right is None else band.right - shift
        before = _NO_LIMIT if before >= keys - 1 else before
        after = _NO_LIMIT if after >= keys - 1 else after
        all_see = keys - queries + after >= 0 and before >= 0
        if before == after == _NO_LIMIT:
            return None, _NO_MASK, _NO_LIMIT, _NO_LIMIT
        if before == _NO_LIMIT and after == 0 and all_see:
            return _compressed_mask(), _RIGHT_DOWN_CAUSAL, _NO_LIMIT, _NO_LIMIT
        if before >= 0 and after >= 0 and all_see:
            return _compressed_mask(), _BAND, before, after
    hidden = hidden_of_call(q, k, mask, call)
    if hidden is None:
        return None, _NO_MASK, _NO_LIMIT, _NO_LIMIT
    whole = mint.broadcast_to(hidden, (q.shape[1], 1, queries, keys))
    return whole, _ALL_MASK, _NO_LIMIT, _NO_LIMIT


def _shift(q: Tensor, call: AttentionCall) -> Tensor | None:
    """The bias for every head, [B or 1, N, S, S']."""
    if call.bias is None:
        return None
    batch, heads, *rest = call.bias.shape
    if heads == q.shape[2]:
        return call.bias
    return mint.broadcast_to(call.bias, (batch, q.shape[2], *rest)).contiguous()


def _sbh(t: Tensor) -> Tensor:
    return t.reshape((t.shape[0], t.shape[1], t.shape[2] * t.shape[3]))


def _document_ends(documents: Documents, batch: int, window: int) -> list[int] | None:
    """Where documents end in the rows put one after the other.

    None if queries and keys differ, there are more documents than one call takes, or one is longer
    than a query sees.
    """
    queries, keys = documents.queries, documents.keys
    if queries.shape != keys.shape or (queries != keys).any():
        return None
    lengths: list[int] = []
    for row in np.broadcast_to(queries, (batch, queries.shape[1])):
        lengths += np.unique(row, return_counts=True)[1].tolist()
    if len(lengths) > _MAX_SEQUENCES or max(lengths) > window:
        return None
    return list(accumulate(lengths))


def _ends_of_call(
    q: Tensor, k: Tensor, mask: Tensor | None, call: AttentionCall
) -> list[int] | None:
    """``_document_ends`` of a call whose documents can go to the kernel as lengths."""
    others = (call.dropout, mask, call.ranges, call.bias)
    if call.documents is None or any(other is not None for other in others):
        return None
    band = call.band(q.shape[0], k.shape[0])
    if band.offset != 0 or band.right not in (None, 0):
        return None
    return _document_ends(
        call.documents, q.shape[1], _NO_LIMIT if band.left is None else band.left + 1
    )


def _flash_documents(
    q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, ends: list[int]
) -> Tensor:
    """Self-attention of documents in layout TND: no mask, and no work between documents."""
    s, b, n, d = q.shape
    causal = call.band(s, s).right == 0
    tokens = [mint.permute(t, (1, 0, 2, 3)).reshape((b * s, t.shape[2], d)) for t in (q, k, v)]
    out = ops.flash_attention_score(
        *tokens,
        n,
        drop_mask=None,
        attn_mask=_compressed_mask() if causal else None,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
        keep_prob=1.0,
        scalar_value=call.scale,
        next_tokens=0 if causal else _NO_LIMIT,
        input_layout="TND",
        sparse_mode=_RIGHT_DOWN_CAUSAL if causal else _NO_MASK,
    )
    return mint.permute(out.reshape((b, s, n * d)), (1, 0, 2))


def attention(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    call: AttentionCall,
) -> Tensor:
    """See ``ops.attention``; fused for bf16 and fp16 with a head size that is a multiple of 16.

    fp32, other head sizes, unequal ones, a cap, slopes, scores in a storage type and a bias of
    another type than q are composed of batched products, with all scores in memory. Documents go to
    the kernel as lengths, but with dropout, another mask or a window shorter than one as a dense
    mask. What the fused kernel gives for a query without visible keys is not verified.

    Raises:
        ValueError: see ``_launch``.
    """
    if not _is_fused(q, v, call) or sinks is not None or call.max_logits is not None:
        return _Attention.apply(q, k, v, mask, sinks, call)
    ends = _ends_of_call(q, k, mask, call)
    if ends is not None:
        return _flash_documents(q, k, v, call, ends)
    launch = _launch(q, k, mask, call)
    out = ops.flash_attention_score(
        _sbh(q),
        _sbh(k),
        _sbh(v),
        q.shape[2],
        real_shift=launch.real_shift,
        drop_mask=launch.drop_mask,
        attn_mask=launch.attn_mask,
        keep_prob=launch.keep,
        scalar_value=launch.scale,
        pre_tokens=launch.pre_tokens,
        next_tokens=launch.next_tokens,
        input_layout="SBH",
        sparse_mode=launch.mode,
    )
    return out if launch.blind is None else out.masked_fill(launch.blind, 0.0)


class _Attention(autograd.Function):
    """Keeps q, k, v, the result and one fp32 number per query and head for backward."""

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
        take = _flash_part if _is_fused(q, v, call) else composed.part_of_keys
        part, lse = take(q, k, v, mask, sinks, call)
        out = _sbh(part).astype(q.dtype)
        ctx.save_for_backward(q, k, v, mask, out, lse, sinks)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out, lse, sinks = ctx.saved_tensors
        take = _flash_gradients if _is_fused(q, v, ctx.call) else composed.gradients
        grads = take(q, k, v, mask, out, lse, dout, ctx.call)
        stored = [grad.astype(t.dtype) for grad, t in zip(grads, (q, k, v), strict=True)]
        dsinks = None if sinks is None else attention_sinks_grad(out, dout, lse, sinks)
        return *stored, None, dsinks, None


def attention_sinks_grad(out: Tensor, dout: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """See ``ops.attention_sinks_grad``."""
    s, b, n = lse.shape
    o_wide, do_wide = (t.astype(ms.float32).reshape((s, b, n, -1)) for t in (out, dout))
    delta = mint.sum(mint.mul(o_wide, do_wide), -1)
    share = mint.exp(mint.sub(sinks.astype(ms.float32), lse))
    total = mint.sum(mint.mul(share, delta).reshape((s * b, n)), 0)
    return mint.neg(total).astype(sinks.dtype)


@functools.lru_cache(maxsize=64)
def _flash(
    heads: int, keep: float, scale: float, pre_tokens: int, next_tokens: int, mode: int
) -> Any:
    return auto_generate.FlashAttentionScore(
        heads, keep, scale, pre_tokens, next_tokens, input_layout="SBH", sparse_mode=mode
    )


@functools.lru_cache(maxsize=64)
def _flash_grad(
    heads: int, keep: float, scale: float, pre_tokens: int, next_tokens: int, mode: int
) -> Any:
    return auto_generate.FlashAttentionScoreGrad(
        heads, keep, scale, pre_tokens, next_tokens, input_layout="SBH", sparse_mode=mode
    )


def _flash_part(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    call: AttentionCall,
) -> tuple[Tensor, Tensor]:
    """(fp32 result [S, B, N, E], log-sum-exp [S, B, N]) over these keys and the sinks."""
    s, b, n, _ = q.shape
    launch = _launch(q, k, mask, call)
    kernel = _flash(*launch.options(n))
    top, total, _, part = kernel(
        _sbh(q),
        _sbh(k),
        _sbh(v),
        real_shift=launch.real_shift,
        drop_mask=launch.drop_mask,
        attn_mask=launch.attn_mask,
    )
    part, blind = part.astype(ms.float32).reshape((s, b, n, v.shape[3])), launch.blind
    top, total = mint.narrow(top, 3, 0, 1), mint.narrow(total, 3, 0, 1)
    lse = mint.add(top, mint.log(total))
    if blind is not None:
        part = part.masked_fill(blind.reshape((s, b, 1, 1)), 0.0)
        unseen = mint.permute(blind, (1, 2, 0)).reshape((b, 1, s, 1))
        lse, top = (t.masked_fill(unseen, -np.inf) for t in (lse, top))
    raise_largest(call, top)
    if sinks is None:
        return part, by_row(lse)
    with_sinks = _with_sinks(lse, sinks)
    share = by_row(mint.exp(mint.sub(lse, with_sinks))).reshape((s, b, n, 1))
    return mint.mul(part, share), by_row(with_sinks)


def _with_sinks(lse: Tensor, sinks: Tensor) -> Tensor:
    """Log-sum-exp [B, N, S, 1] with one more logit per head."""
    logits = sink_logits(sinks)
    top = mint.maximum(lse, logits)
    total = mint.add(mint.exp(mint.sub(lse, top)), mint.exp(mint.sub(logits, top)))
    return mint.add(top, mint.log(total))


def _flash_gradients(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    call: AttentionCall,
) -> tuple[Tensor, ...]:
    """dq, dk, dv; the kernel's maximum and sum are the log-sum-exp of all keys and 1.

    Where no key was seen the maximum is so high that all probabilities are 0.
    """
    s, b, n, _ = q.shape
    launch = _launch(q, k, mask, call)
    top = by_head(lse.masked_fill(mint.lt(lse, -BEYOND_SCORES), BEYOND_SCORES))
    top = mint.broadcast_to(top, (b, n, s, _STATISTIC_COPIES)).contiguous()
    kernel = _flash_grad(*launch.options(n))
    grads = kernel(
        _sbh(q),
        _sbh(k),
        _sbh(v),
        dout,
        pse_shift=launch.real_shift,
        drop_mask=launch.drop_mask,
        atten_mask=launch.attn_mask,
        softmax_max=top,
        softmax_sum=mint.ones(top.shape, dtype=ms.float32),
        attention_in=out,
    )
    return tuple(g.reshape(t.shape) for g, t in zip(grads[:3], (q, k, v), strict=True))


def attention_accumulate(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    call: AttentionCall,
) -> None:
    """See ``ops.attention_accumulate``; documents are a dense mask of this block of scores."""
    take = _flash_part if _is_fused(q, v, call) else composed.part_of_keys
    part, part_lse = take(q, k, v, mask, None, call)
    top = finite(mint.maximum(lse, part_lse))
    shares = [mint.exp(mint.sub(one, top)) for one in (lse, part_lse)]
    total = mint.add(*shares)
    safe = one_for_zero(total)
    old, new = (mint.div(share, safe).reshape((*lse.shape, 1)) for share in shares)
    merged = mint.add(mint.mul(out.reshape(part.shape), old), mint.mul(part, new))
    out.copy_(merged.reshape(out.shape))
    lse.copy_(mint.add(mint.log(total), top))


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
    take = _flash_gradients if _is_fused(q, v, call) else composed.gradients
    parts = take(q, k, v, mask, out, lse, dout, call)
    for grad, part in zip(grads, parts, strict=True):
        grad.add_(part.astype(ms.float32))


def decode_attention(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    slots: Places | None,
    call: AttentionCall,
) -> Tensor:
    """See ``ops.decode_attention``; one query goes to IncreFlashAttention.

    That takes a cache of slots as it lies when the rows are all slots in order; others are copied
    together first, as are keys in the layout [S', B, G, D].
    """
    if slots is None:
        k, v = (mint.permute(t, (1, 0, 2, 3)) for t in (k, v))
    elif not np.array_equal(slots, np.arange(k.shape[0])):
        k, v = (mint.index_select(t, 0, Tensor(slots)) for t in (k, v))
    if q.shape[0] == 1 and sinks is None and call.bias is None and _is_fused(q, v, call):
        return _incremental(q, k, v, call)
    k, v = (mint.permute(_cleared(t, call), (1, 0, 2, 3)) for t in (k, v))
    take = _flash_part if _is_fused(q, v, call) else composed.part_of_keys
    part, _ = take(q, k, v, None, sinks, call)
    return _sbh(part).astype(q.dtype)


def _cleared(t: Tensor, call: AttentionCall) -> Tensor:
    """Keys or values [B, S', G, D], zeros outside the ranges: 0 times NaN would count."""
    assert call.ranges is not None, "a cache has ranges"
    place = np.arange(t.shape[1])[None]
    outside = (place < call.ranges.starts[:, None]) | (place >= call.ranges.stops[:, None])
    return t.masked_fill(Tensor(outside[..., None, None]), 0.0)


def _incremental(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    """One query per row; k and v [B, S', G, D]."""
    batch, keys, groups, dim = k.shape
    hidden = call.hidden(1, keys)
    assert hidden is not None, "a cache has ranges"
    hidden = np.broadcast_to(hidden[:, 0, 0], (batch, keys))
    # Up to the last key that is seen; all of a row without any, whose result is replaced.
    lengths = np.where(hidden.all(1), keys, keys - hidden[:, ::-1].argmin(1))
    needs_mask = any(row[:length].any() for row, length in zip(hidden, lengths, strict=True))
    out = ops.incre_flash_attention(
        q.reshape((1, batch, q.shape[2] * dim)).swapaxes(0, 1),
        [k.reshape((batch, keys, groups * dim))],
        [v.reshape((batch, keys, groups * dim))],
        Tensor(hidden.copy()) if needs_mask else None,
        lengths.tolist(),
        num_heads=q.shape[2],
        input_layout="BSH",
        scale_value=call.scale,
        num_key_value_heads=groups,
        inner_precise=0,
    )
    out = out.swapaxes(0, 1)
    blind = hidden.all(1)
    return out.masked_fill(Tensor(blind[None, :, None]), 0.0) if blind.any() else out
