# SPDX-License-Identifier: Apache-2.0
"""Attention composed of batched products, with all scores in memory; computed in fp32.

For types, head sizes and treatments of scores that the fused kernel does not take.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

from mindspeed_ms.ops.ascend.dropout import kept, kept_words
from mindspeed_ms.ops.attention_call import AttentionCall, ScoreStorage

BEYOND_SCORES = 1.0e30


def hidden_of_call(q: Tensor, k: Tensor, mask: Tensor | None, call: AttentionCall) -> Tensor | None:
    """Everything that hides keys as one dense mask [B or 1, 1, S, S'], True = hidden."""
    hidden = call.hidden(q.shape[0], k.shape[0])
    if hidden is None:
        return mask
    others = Tensor(np.ascontiguousarray(hidden))
    return others if mask is None else mint.logical_or(mask, others)


def keep(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor | None:
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


def finite(tensor: Tensor) -> Tensor:
    """-infinity (nothing is visible) becomes a number so low that all exponentials stay 0."""
    return mint.maximum(tensor, Tensor(np.float32(-BEYOND_SCORES)))


def one_for_zero(tensor: Tensor) -> Tensor:
    """1 where a sum is empty, so that it divides."""
    return mint.add(tensor, mint.eq(tensor, 0.0).astype(ms.float32))


def by_head(per_row: Tensor) -> Tensor:
    """[S, B, N] -> [B, N, S, 1]."""
    s, b, n = per_row.shape
    return mint.permute(per_row, (1, 2, 0)).reshape((b, n, s, 1))


def by_row(per_head: Tensor) -> Tensor:
    """[B, N, S, 1] -> [S, B, N]."""
    b, n, s, _ = per_head.shape
    return mint.permute(per_head.reshape((b, n, s)), (2, 0, 1))


def sink_logits(sinks: Tensor) -> Tensor:
    """[N] -> fp32 [1, N, 1, 1]."""
    return sinks.astype(ms.float32).reshape((1, sinks.shape[0], 1, 1))


def raise_largest(call: AttentionCall, tops: Tensor) -> None:
    """Raise ``call.max_logits`` to the largest scores of each head; tops [B, N, S, 1]."""
    if call.max_logits is not None:
        largest = mint.max(by_row(tops).reshape((-1, tops.shape[1])), 0)[0]
        call.max_logits.copy_(mint.maximum(call.max_logits, largest))


def _by_group(t: Tensor, groups: int) -> Tensor:
    """[S, B, N, D] -> fp32 [B * G, R * S, D] for R query heads per group."""
    s, b, n, d = t.shape
    return mint.permute(t.astype(ms.float32), (1, 2, 0, 3)).reshape(
        (b * groups, n // groups * s, d)
    )


def _ungrouped(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[B * G, R * S, D] -> [S, B, N, D], the shape given."""
    s, b, n, d = shape
    return mint.permute(t.reshape((b, n, s, d)), (2, 0, 1, 3))


def _keep_factor(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor | None:
    factor = keep(q, k, call)
    if factor is None or call.dropout is None:
        return None
    return mint.mul(factor.astype(ms.float32), 1.0 / (1.0 - call.dropout.probability))


def _stored(scores: Tensor, storage: ScoreStorage) -> Tensor:
    narrow = mint.div(scores, storage.divisor).astype(storage.dtype)
    return mint.mul(narrow.astype(ms.float32), storage.divisor)


def _scores(
    q: Tensor, k: Tensor, mask: Tensor | None, call: AttentionCall
) -> tuple[Tensor, Tensor | None]:
    """fp32 scores [B, N, S, S'], -infinity where a key is hidden; and their slopes by the products.

    No slopes: all are 1.
    """
    (s, b, n, _), columns = q.shape, k.shape[0]
    heads, keys = (_by_group(t, k.shape[2]) for t in (q, k))
    scores = mint.bmm(heads, mint.transpose(keys, 1, 2)).reshape((b, n, s, columns))
    scores, slope = mint.mul(scores, call.scale), None
    if call.softcap is not None:
        share = mint.tanh(mint.mul(scores, 1.0 / call.softcap))
        scores, slope = mint.mul(share, call.softcap), mint.sub(1.0, mint.mul(share, share))
    distances = call.alibi(s, columns)
    if distances is not None:
        scores = mint.add(scores, Tensor(distances))
    if call.bias is not None:
        scores = mint.add(scores, call.bias.astype(ms.float32))
    if call.storage is not None:
        scores = _stored(scores, call.storage)
    hidden = hidden_of_call(q, k, mask, call)
    return scores if hidden is None else scores.masked_fill(hidden, -np.inf), slope


def part_of_keys(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    call: AttentionCall,
) -> tuple[Tensor, Tensor]:
    """(fp32 result [S, B, N, E], log-sum-exp [S, B, N]) over these keys and the sinks."""
    s, b, n, _ = q.shape
    columns, _, groups, width = v.shape
    scores, _ = _scores(q, k, mask, call)
    top = mint.max(scores, -1, True)[0]
    raise_largest(call, top)
    top = finite(top if sinks is None else mint.maximum(top, sink_logits(sinks)))
    weights = mint.exp(mint.sub(scores, top))
    total = mint.sum(weights, -1, True)
    if sinks is not None:
        total = mint.add(total, mint.exp(mint.sub(sink_logits(sinks), top)))
    lse = by_row(mint.add(mint.log(total), top))
    weights = mint.div(weights, one_for_zero(total))
    if call.storage is not None and call.storage.weights:
        weights = weights.astype(call.storage.dtype).astype(ms.float32)
    factor = _keep_factor(q, k, call)
    if factor is not None:
        weights = mint.mul(weights, factor)
    weights = weights.reshape((b * groups, n // groups * s, columns))
    return _ungrouped(mint.bmm(weights, _by_group(v, groups)), (s, b, n, width)), lse


def gradients(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    call: AttentionCall,
) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas of ``ops/portable/attention.py``."""
    s, b, n, _ = q.shape
    columns, _, groups, width = v.shape
    grouped = (b * groups, n // groups * s, columns)
    o_wide, do_wide = (t.astype(ms.float32).reshape((s, b, n, width)) for t in (out, dout))
    scores, slope = _scores(q, k, mask, call)
    probs = mint.exp(mint.sub(scores, finite(by_head(lse))))
    if call.storage is not None and call.storage.weights:
        probs = probs.astype(call.storage.dtype).astype(ms.float32)
    factor = _keep_factor(q, k, call)
    weights = probs if factor is None else mint.mul(probs, factor)
    grad = _by_group(do_wide, groups)
    dv = mint.bmm(mint.transpose(weights.reshape(grouped), 1, 2), grad)
    dprobs = mint.bmm(grad, mint.transpose(_by_group(v, groups), 1, 2)).reshape(probs.shape)
    if factor is not None:
        dprobs = mint.mul(dprobs, factor)
    delta = by_head(mint.sum(mint.mul(o_wide, do_wide), -1))
    dscores = mint.mul(mint.mul(probs, mint.sub(dprobs, delta)), call.scale)
    if slope is not None:
        dscores = mint.mul(dscores, slope)
    dscores = dscores.reshape(grouped)
    dq = mint.bmm(dscores, _by_group(k, groups))
    dk = mint.bmm(mint.transpose(dscores, 1, 2), _by_group(q, groups))
    return _ungrouped(dq, q.shape), _ungrouped(dk, k.shape), _ungrouped(dv, v.shape)
