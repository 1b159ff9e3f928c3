"""Attention across the ranks that share a sequence."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.core.context_parallel.all_gather import all_gather_attention
from mindspeed_ms.core.context_parallel.blocks import SharedAttention
from mindspeed_ms.core.context_parallel.layout import ContextParallel
from mindspeed_ms.core.context_parallel.ring import ring_attention
from mindspeed_ms.core.context_parallel.ulysses import share_heads, share_sequence
from mindspeed_ms.ops import Documents, ScorePlaces


def context_parallel_attention(  # noqa: PLR0913 - the arguments of ops.attention
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: ContextParallel,
    *,
    scale: float,
    causal: bool,
    mask: Tensor | None = None,
    documents: Documents | None = None,
    dropout_p: float = 0.0,
    generator: Generator | None = None,
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
        mask: bool [B or 1, 1, rows, S], True = hidden, in place of ``causal``; its rows are those
            of ``context.ring_positions(S)``.
        documents: numbers of the whole sequence, [B or 1, S].
        dropout_p: share of the scores that is dropped.
        generator: for dropout; in the same state on all ranks.

    Returns:
        [s, B, N * E].

    Parallelism: collective over the context parallel group, in forward and in backward.
    """
    s, batch, heads, _ = q.shape
    length = s * context.size
    ulysses, ring = context.ulysses, context.ring
    places = ScorePlaces(heads, ulysses.rank * (heads // ulysses.size), length, length)
    if ulysses.size > 1:
        q, k, v = share_heads(q, k, v, ulysses)
    if ring.size == 1:
        out = ops.attention(
            q,
            k,
            v,
            scale=scale,
            causal=causal and mask is None,
            mask=mask,
            documents=documents,
            dropout_p=dropout_p,
            generator=generator,
            places=places,
        )
    else:
        shape = (batch, heads, length, length)
        shared = SharedAttention(
            rank=ring.rank,
            places=tuple(context.ring_positions(length, rank) for rank in range(ring.size)),
            scale=scale,
            causal=causal,
            documents=documents,
            dropout=ops.draw_dropout(dropout_p, generator, shape, places),
            mask=_host(mask),
        )
        across = all_gather_attention if context.algo == "kvallgather_cp_algo" else ring_attention
        out = across(q, k, v, shared, ring)
    if ulysses.size == 1:
        return out
    out = share_sequence(out.view((*q.shape[:3], v.shape[3])), ulysses)  # [s, B, N, E]
    return out.view((s, batch, heads * v.shape[3]))


def _host(mask: Tensor | None) -> NDArray[np.bool_] | None:
    return None if mask is None else memory.as_numpy(memory.contiguous(mask))
