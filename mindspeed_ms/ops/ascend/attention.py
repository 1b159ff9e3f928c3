"""Attention through FlashAttentionScore, and the masked softmax of the unfused path."""

from __future__ import annotations

import functools
from itertools import accumulate
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops
from mindspore.ops import auto_generate

from mindspeed_ms.ops.ascend.dropout import kept, kept_words
from mindspeed_ms.ops.attention_call import AttentionCall, Documents

_FUSED_TYPES = (ms.bfloat16, ms.float16)
_FUSED_DIM = 16
_COMPRESSED = 2048
_ALL_MASK, _RIGHT_DOWN_CAUSAL = 1, 3
_NO_LIMIT = 2**31 - 1
_BEYOND_SCORES = 1.0e30
_MAX_SEQUENCES = 1024
"""Sequences of one call in layout TND."""

_STATISTIC_COPIES = 8
"""The kernel holds every maximum and every sum this many times side by side."""


@functools.lru_cache(maxsize=1)
def _compressed_mask() -> Tensor:
    """The triangle that the causal mode of the kernel expects, whatever the sequence length."""
    return Tensor(np.triu(np.ones((_COMPRESSED, _COMPRESSED), np.uint8), 1))


def _hidden(rows: int, columns: int, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Bool, True = hidden; broadcasts to [B, N, rows, columns]."""
    if not causal:
        return mask
    later = Tensor(np.triu(np.ones((rows, columns), np.bool_), 1 + columns - rows))
    return later if mask is None else mint.logical_or(mask, later)


def _hidden_of_call(
    q: Tensor, k: Tensor, mask: Tensor | None, call: AttentionCall
) -> Tensor | None:
    """Everything that hides keys as one dense mask."""
    if call.documents is not None:
        others = Tensor(call.documents.hidden())
        mask = others if mask is None else mint.logical_or(mask, others)
    return _hidden(q.shape[0], k.shape[0], mask, call.causal)


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


def _keep(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor | None:
    """Bool [B, N, S, S'], True where a score survives dropout; None: all do."""
    if call.dropout is None:
        return None
    drop, (s, b, n, _) = call.dropout, q.shape
    shape = (b, n, s, k.shape[0])
    if drop.places is None:
        count = b * n * s * k.shape[0]
        return kept(drop.probability, drop.seed, drop.offset, count).reshape(shape)
    words = drop.offset + drop.places.words(b, n)
    return kept_words(drop.probability, drop.seed, words.reshape(-1)).reshape(shape)


def _packed_bits(keep: Tensor) -> Tensor:
    """uint8 [B, N, S, S' / 8] from one bool per score, the first score in the lowest bit."""
    *shape, columns = keep.shape
    weights = Tensor(np.array([1 << bit for bit in range(8)], np.int32))
    bits = keep.reshape((*shape, columns // 8, 8)).astype(ms.int32)
    return mint.sum(mint.mul(bits, weights), -1).astype(ms.uint8)


def _is_fused(q: Tensor, v: Tensor) -> bool:
    """Whether the kernel takes the type and the head sizes."""
    dim = q.shape[3]
    return q.dtype in _FUSED_TYPES and dim % _FUSED_DIM == 0 and v.shape[3] == dim


def _finite(tensor: Tensor) -> Tensor:
    """-infinity (nothing is visible) becomes a number so low that all exponentials stay 0."""
    return mint.maximum(tensor, Tensor(np.float32(-_BEYOND_SCORES)))


def _one_for_zero(tensor: Tensor) -> Tensor:
    return mint.add(tensor, mint.eq(tensor, 0.0).astype(ms.float32))


# ---- composed of batched products, with all scores in memory -------------------------------------


def _by_group(t: Tensor, groups: int) -> Tensor:
    """[S, B, N, D] -> [B * G, R * S, D] for R query heads per group."""
    s, b, n, d = t.shape
    return mint.permute(t, (1, 2, 0, 3)).reshape((b * groups, n // groups * s, d))


def _by_row(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[B * G, R * S, D] -> [S, B, N, D], the shape given."""
    s, b, n, d = shape
    return mint.permute(t.reshape((b, n, s, d)), (2, 0, 1, 3))


def _keep_factor(keep: Tensor | None, call: AttentionCall, dtype: Any) -> Tensor | None:
    if keep is None or call.dropout is None:
        return None
    return mint.mul(keep.astype(dtype), 1.0 / (1.0 - call.dropout.probability))


def _composed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, call: AttentionCall) -> Tensor:
    """Attention for types and head sizes the fused kernel does not take."""
    s, b, n, _ = q.shape
    columns, _, groups, width = v.shape
    heads, keys, values = (_by_group(t, groups) for t in (q, k, v))
    scores = mint.bmm(heads, mint.transpose(keys, 1, 2)).reshape((b, n, s, columns))
    probs = softmax(scores, _hidden_of_call(q, k, mask, call), False, call.scale)
    factor = _keep_factor(_keep(q, k, call), call, q.dtype)
    if factor is not None:
        probs = mint.mul(probs, factor)
    out = mint.bmm(probs.reshape((b * groups, n // groups * s, columns)), values)
    return _by_row(out, (s, b, n, width)).reshape((s, b, n * width))


def _composed_scores(q: Tensor, k: Tensor, mask: Tensor | None, call: AttentionCall) -> Tensor:
    """Scaled fp32 scores [B, N, S, S'], very low where a key is hidden."""
    s, b, n, _ = q.shape
    heads, keys = (_by_group(t.astype(ms.float32), k.shape[2]) for t in (q, k))
    scores = mint.bmm(heads, mint.transpose(keys, 1, 2)).reshape((b, n, s, k.shape[0]))
    scores = mint.mul(scores, call.scale)
    hidden = _hidden_of_call(q, k, mask, call)
    return scores if hidden is None else scores.masked_fill(hidden, -np.inf)


def _composed_part(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, call: AttentionCall
) -> tuple[Tensor, Tensor]:
    """(fp32 result [S, B, N, E], log-sum-exp [S, B, N]) over these keys."""
    s, b, n, _ = q.shape
    columns, _, groups, width = v.shape
    scores = _composed_scores(q, k, mask, call)
    top = _finite(mint.max(scores, -1, True)[0])
    weights = mint.exp(mint.sub(scores, top))
    total = mint.sum(weights, -1, True)
    lse = mint.permute(mint.add(mint.log(total), top).reshape((b, n, s)), (2, 0, 1))
    weights = mint.div(weights, _one_for_zero(total))
    factor = _keep_factor(_keep(q, k, call), call, ms.float32)
    if factor is not None:
        weights = mint.mul(weights, factor)
    weights = weights.reshape((b * groups, n // groups * s, columns))
    return _by_row(
        mint.bmm(weights, _by_group(v.astype(ms.float32), groups)), (s, b, n, width)
    ), lse


def _composed_gradients(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    call: AttentionCall,
) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas of ``ops/portable/attention.py`` in fp32."""
    s, b, n, _ = q.shape
    columns, _, groups, width = v.shape
    grouped = (b * groups, n // groups * s, columns)
    q_wide, k_wide, v_wide = (t.astype(ms.float32) for t in (q, k, v))
    o_wide, do_wide = (t.astype(ms.float32).reshape((s, b, n, width)) for t in (out, dout))
    seen = _finite(mint.permute(lse, (1, 2, 0)).reshape((b, n, s, 1)))
    probs = mint.exp(mint.sub(_composed_scores(q, k, mask, call), seen))
    factor = _keep_factor(_keep(q, k, call), call, ms.float32)
    weights = probs if factor is None else mint.mul(probs, factor)
    grad = _by_group(do_wide, groups)
    dv = mint.bmm(mint.transpose(weights.reshape(grouped), 1, 2), grad)
    dprobs = mint.bmm(grad, mint.transpose(_by_group(v_wide, groups), 1, 2)).reshape(probs.shape)
    if factor is not None:
        dprobs = mint.mul(dprobs, factor)
    delta = mint.permute(mint.sum(mint.mul(o_wide, do_wide), -1), (1, 2, 0)).reshape((b, n, s, 1))
    dscores = mint.mul(mint.mul(probs, mint.sub(dprobs, delta)), call.scale).reshape(grouped)
    dq = mint.bmm(dscores, _by_group(k_wide, groups))
    dk = mint.bmm(mint.transpose(dscores, 1, 2), _by_group(q_wide, groups))
    return _by_row(dq, q.shape), _by_row(dk, k.shape), _by_row(dv, v.shape)


# ---- fused ---------------------------------------------------------------------------------------


def _flash_options(
    q: Tensor, k: Tensor, mask: Tensor | None, call: AttentionCall
) -> tuple[dict[str, Any], int]:
    """Tensors of the fused kernel besides q, k and v in layout SBH, and its sparse mode.

    Raises:
        ValueError: dropout with a number of keys that is not a multiple of 8 (the kernel reads the
            mask as bits).
    """
    s, b, _, _ = q.shape
    keep = _keep(q, k, call)
    is_triangle = call.causal and mask is None and call.documents is None
    if keep is not None and k.shape[0] % 8:
        raise ValueError(
            f"attention: dropout with {k.shape[0]} keys; the kernel needs a multiple of 8: pad the "
            "sequence"
        )
    bits = None if keep is None else _packed_bits(keep)
    if is_triangle and s <= k.shape[0]:  # otherwise some queries see no key: see _blind
        return {"drop_mask": bits, "attn_mask": _compressed_mask()}, _RIGHT_DOWN_CAUSAL
    hidden = _hidden_of_call(q, k, mask, call)
    if hidden is None:
        return {"drop_mask": bits, "attn_mask": None}, 0
    hidden = mint.broadcast_to(hidden, (b, 1, s, k.shape[0]))
    return {"drop_mask": bits, "attn_mask": hidden}, _ALL_MASK


def _blind(options: dict[str, Any], mode: int) -> Tensor | None:
    """Bool [S, B, 1], True for queries that see no key; None: it is known that all see some.

    What the kernel gives for those is not documented, so the callers replace it.
    """
    if mode != _ALL_MASK:
        return None
    return mint.permute(mint.all(options["attn_mask"], -1), (2, 0, 1))


def _keep_probability(call: AttentionCall) -> float:
    return 1.0 if call.dropout is None else 1.0 - call.dropout.probability


def _sbh(t: Tensor) -> Tensor:
    return t.reshape((t.shape[0], t.shape[1], t.shape[2] * t.shape[3]))


def _document_ends(documents: Documents, batch: int) -> list[int] | None:
    """Where documents end in the rows put one after the other.

    None if queries and keys differ, or there are more documents than one call takes.
    """
    queries, keys = documents.queries, documents.keys
    if queries.shape != keys.shape or (queries != keys).any():
        return None
    lengths: list[int] = []
    for row in np.broadcast_to(queries, (batch, queries.shape[1])):
        lengths += np.unique(row, return_counts=True)[1].tolist()
    return list(accumulate(lengths)) if len(lengths) <= _MAX_SEQUENCES else None


def _flash_documents(
    q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, ends: list[int]
) -> Tensor:
    """Self-attention of documents in layout TND: no mask, and no work between documents."""
    s, b, n, d = q.shape
    tokens = [mint.permute(t, (1, 0, 2, 3)).reshape((b * s, t.shape[2], d)) for t in (q, k, v)]
    out = ops.flash_attention_score(
        *tokens,
        n,
        drop_mask=None,
        attn_mask=_compressed_mask() if call.causal else None,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
        keep_prob=1.0,
        scalar_value=call.scale,
        next_tokens=0 if call.causal else _NO_LIMIT,
        input_layout="TND",
        sparse_mode=_RIGHT_DOWN_CAUSAL if call.causal else 0,
    )
    return mint.permute(out.reshape((b, s, n * d)), (1, 0, 2))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, call: AttentionCall) -> Tensor:
    """See ``ops.attention``; fused for bf16 and fp16 with a head size that is a multiple of 16.

    fp32 and other head sizes are composed of batched products, with all scores in memory. Documents
    go to the kernel as lengths, but with dropout or another mask as a dense mask. What the fused
    kernel gives for a query without visible keys is not verified.

    Raises:
        ValueError: see ``_flash_options``.
    """
    if not _is_fused(q, v):
        return _composed(q, k, v, mask, call)
    if call.documents is not None and call.dropout is None and mask is None:
        ends = _document_ends(call.documents, q.shape[1])
        if ends is not None:
            return _flash_documents(q, k, v, call, ends)
    options, mode = _flash_options(q, k, mask, call)
    out = ops.flash_attention_score(
        _sbh(q),
        _sbh(k),
        _sbh(v),
        q.shape[2],
        keep_prob=_keep_probability(call),
        scalar_value=call.scale,
        input_layout="SBH",
        sparse_mode=mode,
        **options,
    )
    blind = _blind(options, mode)
    return out if blind is None else out.masked_fill(blind, 0.0)


@functools.lru_cache(maxsize=64)
def _flash(heads: int, keep: float, scale: float, mode: int) -> Any:
    return auto_generate.FlashAttentionScore(
        heads, keep, scale, input_layout="SBH", sparse_mode=mode
    )


@functools.lru_cache(maxsize=64)
def _flash_grad(heads: int, keep: float, scale: float, mode: int) -> Any:
    return auto_generate.FlashAttentionScoreGrad(
        heads, keep, scale, input_layout="SBH", sparse_mode=mode
    )


def _flash_part(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, call: AttentionCall
) -> tuple[Tensor, Tensor]:
    """(fp32 result [S, B, N, E], log-sum-exp [S, B, N]) over these keys."""
    s, b, n, _ = q.shape
    options, mode = _flash_options(q, k, mask, call)
    kernel = _flash(n, _keep_probability(call), call.scale, mode)
    top, total, _, part = kernel(_sbh(q), _sbh(k), _sbh(v), **options)
    lse = mint.add(mint.narrow(top, 3, 0, 1), mint.log(mint.narrow(total, 3, 0, 1)))
    lse = mint.permute(lse.reshape((b, n, s)), (2, 0, 1))
    part = part.astype(ms.float32)
    blind = _blind(options, mode)
    if blind is not None:
        part, lse = part.masked_fill(blind, 0.0), lse.masked_fill(blind, -np.inf)
    return part.reshape((s, b, n, v.shape[3])), lse


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
    options, mode = _flash_options(q, k, mask, call)
    top = lse.masked_fill(mint.lt(lse, -_BEYOND_SCORES), _BEYOND_SCORES)
    top = mint.permute(top, (1, 2, 0)).reshape((b, n, s, 1))
    top = mint.broadcast_to(top, (b, n, s, _STATISTIC_COPIES)).contiguous()
    kernel = _flash_grad(n, _keep_probability(call), call.scale, mode)
    grads = kernel(
        _sbh(q),
        _sbh(k),
        _sbh(v),
        dout,
        drop_mask=options["drop_mask"],
        atten_mask=options["attn_mask"],
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
    take = _flash_part if _is_fused(q, v) else _composed_part
    part, part_lse = take(q, k, v, mask, call)
    top = _finite(mint.maximum(lse, part_lse))
    shares = [mint.exp(mint.sub(one, top)) for one in (lse, part_lse)]
    total = mint.add(*shares)
    safe = _one_for_zero(total)
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
    take = _flash_gradients if _is_fused(q, v) else _composed_gradients
    parts = take(q, k, v, mask, out, lse, dout, call)
    for grad, part in zip(grads, parts, strict=True):
        grad.add_(part.astype(ms.float32))
