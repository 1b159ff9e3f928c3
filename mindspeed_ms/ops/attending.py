# SPDX-License-Identifier: Apache-2.0
"""Attention: whole, over blocks of keys, and its gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms.backend import autograd
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops import checks
from mindspeed_ms.ops.attention_call import (
    AttentionCall,
    Documents,
    KeyRanges,
    Places,
    ScorePlaces,
    ScoreStorage,
    Window,
    draw_dropout,
)
from mindspeed_ms.ops.selection import chosen


def attention(  # noqa: PLR0913 - one argument per option of an attention
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool = True,
    window: Window = (None, None),
    mask: Tensor | None = None,
    ranges: KeyRanges | None = None,
    documents: Documents | None = None,
    softcap: float | None = None,
    slopes: NDArray[np.float32] | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    storage: ScoreStorage | None = None,
    dropout_p: float = 0.0,
    generator: Generator | None = None,
    places: ScorePlaces | None = None,
    max_logits: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention, ``dropout(softmax(scores of visible keys)) v``.

    Query head n reads key/value group ``n // (N / G)``; keys and values are not repeated. The last
    query stands at the place of the last key, also when S and S' differ, unless ``ranges`` say
    otherwise. A query that sees no key gives zeros.

    Scores are made in this order: ``scale * q k^T``; capped by ``softcap``; less ``slope *
    |distance|``; plus ``bias``; rounded as ``storage`` says. Dropout bits are indexed by the
    position in [B, N, S, S'] of the whole attention, of which ``places`` says which part this is.

    Args:
        q: [S, B, N, D].
        k: [S', B, G, D].
        v: [S', B, G, E].
        scale: factor of the products.
        causal: hide keys later than their query.
        window: (left, right) tokens around its own place that a query sees, both included; None:
            without limit. Blocks of scores outside are not computed.
        mask: bool [B or 1, 1, S, S'], True = hidden.
        ranges: which keys each row of the batch has (padding on either side).
        documents: hide keys of other documents.
        softcap: scores become ``softcap * tanh(score / softcap)``.
        slopes: fp32 [N], attention with linear biases.
        bias: floating [B or 1, N or 1, S, S'], added to the scores; gets no gradient.
        sinks: floating [N], a further logit per head that takes its share of the softmax and has no
            value; differentiable.
        storage: the type in which scores lie between operators; None: fp32.
        dropout_p: probability of dropping a weight.
        generator: for dropout.
        places: None: the scores of this call are the whole.
        max_logits: fp32 [N], raised in place to the largest visible score of each head.

    Returns:
        [S, B, N * E].

    Source: Vaswani et al., 2017; Beltagy et al., 2020 (window); Press et al., 2022 (slopes); Gemma
    Team, 2024 (cap); Xiao et al., 2024 and gpt-oss (sinks).
    """
    call = AttentionCall(
        scale=scale,
        causal=causal,
        window=window,
        ranges=ranges,
        documents=documents,
        softcap=softcap,
        slopes=slopes,
        bias=bias,
        storage=storage,
        max_logits=max_logits,
    )
    checks.dropout("attention", dropout_p, generator is not None)
    if dropout_p > 0.0:
        shape = (q.shape[1], q.shape[2], q.shape[0], k.shape[0])
        call = replace(call, dropout=draw_dropout(dropout_p, generator, shape, places))
    return attend(q, k, v, mask, sinks, call)


def attend(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    call: AttentionCall,
) -> Tensor:
    """``attention`` with its options as an ``AttentionCall``."""
    checks.attention(q, k, v, mask, call, sinks)
    return chosen.kernels.attention(q, k, v, mask, sinks, call)


def attention_accumulate(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    call: AttentionCall,
    mask: Tensor | None = None,
) -> None:
    """Go on with an attention over further keys, in place.

    ``out`` and ``lse`` hold the result over earlier keys and become the result over all of them,
    wherever the keys lie: ``lse = log(exp(lse) + sum exp(scores))``, ``out`` the mean of both
    results weighted by their sums. Begin with ``out`` 0 and ``lse`` -infinity.

    Shapes: q, k, v, mask as in ``attention``, contiguous; out fp32 [S, B, N * E]; lse fp32
    [S, B, N].
    Source: Milakov and Gimelshein, 2018; Liu et al., 2023 (ring attention).
    """
    checks.attention(q, k, v, mask, call)
    checks.attention_sums(q, v, out, lse)
    checks.flat_float32("attention_accumulate", out)
    checks.in_place("attention_accumulate", q, k, v, lse)
    chosen.kernels.attention_accumulate(q, k, v, mask, out, lse, call)


def attention_backward_accumulate(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    call: AttentionCall,
    mask: Tensor | None = None,
) -> None:
    """Add the gradients that come from some of the keys to fp32 tensors (dq, dk, dv), in place.

    Shapes: q, k, v, mask of these keys as in ``attention``, contiguous; out, dout (of the type of
    q) [S, B, N * E] and lse fp32 [S, B, N] of the attention over all keys; dq, dk, dv like q, k, v.
    """
    checks.attention(q, k, v, mask, call)
    checks.attention_sums(q, v, out, lse)
    checks.floating("attention_backward_accumulate", q.dtype, out.dtype, dout.dtype)
    checks.same_shape("attention_backward_accumulate", out.shape, dout.shape)
    checks.in_place("attention_backward_accumulate", q, k, v, out, lse, dout)
    for grad, tensor in zip(grads, (q, k, v), strict=True):
        checks.same_shape("attention_backward_accumulate", grad.shape, tensor.shape)
        checks.flat_float32("attention_backward_accumulate", grad)
    chosen.kernels.attention_backward_accumulate(q, k, v, mask, out, lse, dout, grads, call)


def attention_sinks_grad(out: Tensor, dout: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Gradient of the logits of sinks, [N]: ``-sum exp(sink - lse) * (out . dout)`` over queries.

    Shapes: out and dout [S, B, N * E] of one type; lse fp32 [S, B, N], with the sinks in it; sinks
    [N].
    """
    checks.floating("attention_sinks_grad", out.dtype, dout.dtype)
    checks.same_shape("attention_sinks_grad", out.shape, dout.shape)
    checks.floating("attention_sinks_grad", lse.dtype)
    checks.vector("attention_sinks_grad", "sinks", sinks.shape, lse.shape[-1])
    return chosen.kernels.attention_sinks_grad(out, dout, lse, sinks)


def decode_attention(  # noqa: PLR0913 - one argument per option of an attention
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ranges: KeyRanges,
    *,
    scale: float,
    causal: bool = True,
    window: Window = (None, None),
    slots: Places | None = None,
    softcap: float | None = None,
    slopes: NDArray[np.float32] | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of a few new tokens to the keys of a cache; forward only, nothing is recorded.

    A cache is memory for S' keys and values per row, of which ``ranges`` say which exist. The
    caller writes the keys and values of the new tokens first, so that a token sees itself. What
    lies outside the ranges may hold anything. For one or few queries every key and value is read
    once, and threads share rows, groups and stretches of keys; the time is that of reading them.

    A server with many requests keeps one memory of slots, [slots, S', G, D] per layer, and a
    request keeps its slot: ``slots`` names those of the rows of this call, in any order, so that no
    keys move when requests come and go. Rows of different lengths stand side by side
    (``KeyRanges.of_lengths``); prompts padded on the left begin at ``starts``, those padded on the
    right end at ``stops``. Several rows may share a slot, and a cut is a smaller ``stops``.

    Args:
        q: [S, B, N, D], S new tokens of each row.
        k: [S', B, G, D], or with ``slots`` [slots, S', G, D]; contiguous.
        v: [S', B, G, E], or [slots, S', G, E].
        ranges: keys of each row, and the place of its first query among them.
        scale: factor of the products.
        causal: hide keys later than their query.
        window: (left, right) tokens around its own place that a query sees; None: all.
        slots: int64 [B], slot of each row.
        softcap: see ``attention``, as the others below.
        slopes: fp32 [N].
        sinks: floating [N].

    Returns:
        [S, B, N * E].
    """
    call = AttentionCall(
        scale=scale, causal=causal, window=window, ranges=ranges, softcap=softcap, slopes=slopes
    )
    slots = None if slots is None else np.ascontiguousarray(slots, dtype=np.int64)
    checks.decode_attention(q, k, v, slots, call, sinks)
    with autograd.no_grad():
        return chosen.kernels.decode_attention(q, k, v, sinks, slots, call)
