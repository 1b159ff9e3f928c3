# SPDX-License-Identifier: Apache-2.0
"""The choice of keys in sparse attention, and the loss that trains it.

Legend: s queries, S keys, B batch, H heads of the indexer of width D, N heads of the attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.portable.arrays import Array, tensor_of, wide
from mindspeed_ms.ops.portable.attention import masked_softmax

Context = Any

_MOST = 1 << 24
"""Products that are in memory at a time."""
_EPS = 1e-10


def _blocks(queries: int, per_query: int) -> Iterator[slice]:
    """Queries whose products fit."""
    step = max(1, _MOST // max(1, per_query))
    for first in range(0, queries, step):
        yield slice(first, first + step)


class _IndexScores(autograd.Function):
    """``I = sum over h of w_h max(q_h k, 0)``; backward computes the products again."""

    @staticmethod
    def forward(ctx: Context, q: Tensor, k: Tensor, weights: Tensor, rectified: bool) -> Tensor:
        ctx.save_for_backward(q, k, weights)
        ctx.rectified = rectified
        queries, keys, factors = wide(q), wide(k), wide(weights)
        length, batch, heads, _ = queries.shape
        scores = np.empty((batch, length, len(keys)), np.float32)
        for row in range(batch):
            for some in _blocks(length, heads * len(keys)):
                products = queries[some, row] @ keys[:, row].T
                if rectified:
                    np.maximum(products, 0, out=products)
                scores[row, some] = (factors[some, row, None] @ products)[:, 0]
        return tensor_of(scores)

    @staticmethod
    def backward(ctx: Context, dscores: Tensor) -> tuple[Tensor | None, ...]:
        q, k, weights = ctx.saved_tensors
        queries, keys, factors, dy = wide(q), wide(k), wide(weights), wide(dscores)
        length, batch, heads, width = queries.shape
        dq, dk, dw = np.empty_like(queries), np.zeros_like(keys), np.empty_like(factors)
        for row in range(batch):
            for some in _blocks(length, heads * len(keys)):
                given = dy[row, some]
                products = queries[some, row] @ keys[:, row].T  # [some, H, S]
                dproducts = factors[some, row, :, None] * given[:, None]
                if ctx.rectified:
                    dproducts *= products > 0
                    np.maximum(products, 0, out=products)
                dw[some, row] = (products @ given[:, :, None])[..., 0]
                dq[some, row] = dproducts @ keys[:, row]
                flat = dproducts.reshape(-1, len(keys))
                dk[:, row] += flat.T @ queries[some, row].reshape(-1, width)
        grads = (tensor_of(g, t.dtype) for g, t in zip((dq, dk, dw), (q, k, weights), strict=True))
        return (*grads, None)


def index_scores(q: Tensor, k: Tensor, weights: Tensor, rectified: bool) -> Tensor:
    """See ``ops.index_scores``."""
    return _IndexScores.apply(q, k, weights, rectified)


class _IndexLoss(autograd.Function):
    """``L = sum t (log(t + e) - log(p + e)) / rows``; ``dp = -t / (p + e) / rows``."""

    @staticmethod
    def forward(ctx: Context, scores: Tensor, shares: Tensor, hidden: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(scores, shares, hidden)
        ctx.rows = rows
        target, guess = _distributions(scores, shares, hidden)
        distance = target * (np.log(target + _EPS) - np.log(guess + _EPS))
        return tensor_of(np.array(distance.sum(dtype=np.float64) / rows, np.float32))

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        target, guess = _distributions(*ctx.saved_tensors)
        dguess = target / (guess + _EPS) * np.float32(-wide(dy).item() / ctx.rows)
        dscores = guess * (dguess - (guess * dguess).sum(axis=-1, keepdims=True))
        return tensor_of(dscores), None, None, None


def _distributions(scores: Tensor, shares: Tensor, hidden: Tensor) -> tuple[Array, Array]:
    """(what attention looks at, what the scores say), [B, s, S]."""
    target = wide(shares)
    guess = masked_softmax(wide(scores), memory.as_numpy(hidden)[:, 0])
    return target / target.sum(axis=-1, keepdims=True), guess


def index_loss(scores: Tensor, shares: Tensor, hidden: Tensor, rows: int) -> Tensor:
    """See ``ops.index_loss``."""
    return _IndexLoss.apply(scores, shares, hidden, rows)


def hidden_but_top(scores: Tensor, hidden: Tensor, count: int) -> Tensor:
    """See ``ops.hidden_but_top``."""
    values = np.where(memory.as_numpy(hidden)[:, 0], np.float32(-np.inf), wide(scores))
    keys = values.shape[-1]
    invisible = np.isneginf(values)
    if count < keys:
        least = np.partition(values, keys - count, axis=-1)[..., keys - count, None]
        equal = values == least
        free = count - (values > least).sum(axis=-1, keepdims=True)
        invisible |= (values < least) | (equal & (equal.cumsum(axis=-1) > free))
    return memory.from_numpy(np.ascontiguousarray(invisible[:, None]))


def attention_share(q: Tensor, k: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """See ``ops.attention_share``."""
    queries, keys, unseen = wide(q), wide(k), memory.as_numpy(hidden)[:, 0]
    length, batch, heads, _ = queries.shape
    shares = np.zeros((batch, length, len(keys)), np.float32)
    for row in range(batch):
        mask = unseen[row if len(unseen) > 1 else 0]
        for head in range(heads):
            products = queries[:, row, head] @ keys[:, row, head].T
            shares[row] += masked_softmax(products * np.float32(scale), mask)
    return tensor_of(shares)
