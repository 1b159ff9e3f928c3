# SPDX-License-Identifier: Apache-2.0
"""Attention across the ranks that share a sequence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, mint
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.core.context_parallel.all_gather import all_gather_attention
from mindspeed_ms.core.context_parallel.blocks import SharedAttention
from mindspeed_ms.core.context_parallel.direct import direct_attention
from mindspeed_ms.core.context_parallel.layout import ContextParallel
from mindspeed_ms.core.context_parallel.ring import ring_attention
from mindspeed_ms.core.context_parallel.ulysses import share_heads, share_sequence
from mindspeed_ms.ops import (
    AttentionCall,
    Documents,
    ScorePlaces,
    ScoreStorage,
    Window,
    checks,
)


def context_parallel_attention(  # noqa: PLR0913 - the arguments of ops.attention
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: ContextParallel,
    *,
    scale: float,
    causal: bool,
    window: Window = (None, None),
    mask: Tensor | None = None,
    documents: Documents | None = None,
    softcap: float | None = None,
    slopes: NDArray[np.float32] | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    storage: ScoreStorage | None = None,
    dropout_p: float = 0.0,
    generator: Generator | None = None,
    max_logits: Tensor | None = None,
) -> Tensor:
    """``ops.attention`` of this rank's queries to the keys of the whole sequence.

    Result, gradients and dropped scores are those of the attention on one rank.

    Args:
        q: [s, B, N, D], s = S / ranks, at ``context.positions(S)``.
        k: [s, B, G, D].
        v: [s, B, G, E].
        context: the ranks, and how they exchange.
        scale: factor on the scores.
        causal: hide keys later than their query.
        window: tokens of the whole sequence before and after its place that a query sees.
        mask: bool [B or 1, 1, rows, S], True = hidden, in place of ``causal``; its rows are those
            of ``context.ring_positions(S)``.
        documents: numbers of the whole sequence, [B or 1, S].
        softcap: as in ``ops.attention``.
        slopes: fp32 [N].
        bias: [B or 1, N or 1, rows, S], rows as of ``mask``.
        sinks: [N]; its gradient is that by this rank's queries.
        storage: as in ``ops.attention``; weights are rounded with all-to-all only (ValueError),
            since a ring does not know their sum in time.
        dropout_p: share of the scores that is dropped.
        generator: for dropout; in the same state on all ranks.
        max_logits: fp32 [N], raised to the largest scores of this rank's queries (all-to-all: of
            all queries, for this rank's heads).

    Returns:
        [s, B, N * E].

    Parallelism: collective over the context parallel group, in forward and in backward.
    """
    s, batch, heads, _ = q.shape
    length = s * context.size
    ulysses = context.ulysses
    own = _Heads(ulysses, heads)
    if ulysses.size > 1:
        q, k, v = share_heads(q, k, v, ulysses)
    places = ScorePlaces(heads, own.first, length, length)
    checks.dropout("attention", dropout_p, generator is not None)
    call = AttentionCall(
        scale=scale,
        causal=causal and mask is None,
        window=_limits(window, causal and mask is None, length),
        documents=documents,
        dropout=ops.draw_dropout(dropout_p, generator, (batch, heads, length, length), places),
        softcap=softcap,
        slopes=None if slopes is None else np.ascontiguousarray(slopes[own.slice]),
        bias=own.of_bias(bias),
        storage=storage,
        max_logits=own.of(max_logits),
    )
    across = ops.attend if context.ring.size == 1 else _over_ring(context)
    out = across(q, k, v, mask, own.of(sinks), call)
    if ulysses.size == 1:
        return out
    out = share_sequence(out.view((*q.shape[:3], v.shape[3])), ulysses)  # [s, B, N, E]
    return out.view((s, batch, heads * v.shape[3]))


def _over_ring(context: ContextParallel) -> Callable[..., Tensor]:
    """``ops.attend`` to the keys of all ranks of the ring."""

    def across(  # noqa: PLR0913 - one argument per tensor
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        sinks: Tensor | None,
        call: AttentionCall,
    ) -> Tensor:
        if call.storage is not None and call.storage.weights:
            raise ValueError(
                f"{context.algo} computes a softmax in parts, whose weights cannot be rounded; use "
                "ulysses_cp_algo, or a softmax in float32"
            )
        ring, length = context.ring, q.shape[0] * context.ring.size
        shared = SharedAttention(
            rank=ring.rank,
            places=tuple(context.ring_positions(length, rank) for rank in range(ring.size)),
            options=call,
            mask=None if mask is None else memory.as_numpy(memory.contiguous(mask)),
        )
        way = ring_attention if call.window == (None, None) else direct_attention
        if context.algo == "kvallgather_cp_algo":
            way = all_gather_attention
        return way(q, k, v, sinks, shared, ring)

    return across


class _Heads:
    """The heads of this rank during attention."""

    def __init__(self, ulysses: Group, heads: int) -> None:
        self._all, self._count = heads, heads // ulysses.size
        self.first = ulysses.rank * self._count
        self.slice = slice(self.first, self.first + self._count)

    def of(self, per_head: Tensor | None, dim: int = 0) -> Tensor | None:
        """Those of a tensor with one number per head; a view."""
        if per_head is None or self._count == self._all:
            return per_head
        return mint.narrow(per_head, dim, self.first, self._count)

    def of_bias(self, bias: Tensor | None) -> Tensor | None:
        """Those of a bias for every head or for all."""
        if bias is None or bias.shape[1] == 1:
            return bias
        own = self.of(bias, 1)
        return None if own is None else memory.contiguous(own)


def _limits(window: Window, causal: bool, length: int) -> Window:
    """The window without limits that hide nothing."""
    left, right = window
    right = None if causal or (right is not None and right >= length - 1) else right
    return None if left is not None and left >= length - 1 else left, right
