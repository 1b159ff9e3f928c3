# SPDX-License-Identifier: Apache-2.0
"""The choice of keys in sparse attention, and the loss that trains it; exported by ``ops``.

Legend: s queries, S keys, B batch, H heads of the indexer of width D, N heads of the attention.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor

from mindspeed_ms.ops import checks
from mindspeed_ms.ops.selection import chosen

__all__ = ["attention_share", "hidden_but_top", "index_loss", "index_scores"]


def index_scores(q: Tensor, k: Tensor, weights: Tensor, rectified: bool = True) -> Tensor:
    """Sum over the heads of ``weight * max(q k, 0)``, in fp32; nothing is hidden.

    Args:
        q: [s, B, H, D].
        k: [S, B, D], one for all heads.
        weights: [s, B, H].
        rectified: products below 0 count as 0.

    Returns:
        fp32 [B, s, S].

    Source: DeepSeek-AI, 2025 (DeepSeek-V3.2), equation 1.
    """
    checks.floating("index_scores", q.dtype, k.dtype, weights.dtype)
    if q.shape[:3] != weights.shape or (q.shape[1], q.shape[3]) != k.shape[1:]:
        raise ValueError(
            f"index_scores: q {tuple(q.shape)}, k {tuple(k.shape)}, weights "
            f"{tuple(weights.shape)}; they are [s, B, H, D], [S, B, D] and [s, B, H]"
        )
    return chosen.kernels.index_scores(q, k, weights, rectified)


def index_loss(scores: Tensor, shares: Tensor, hidden: Tensor, rows: int) -> Tensor:
    """How far the softmax of the scores is from what attention looks at; fp32 scalar.

    It is the sum over the queries of ``KL(shares / sum(shares) || softmax(scores))``, with 1e-10
    added to both before their logarithms, divided by ``rows``. Shares get no gradient.

    Args:
        scores: fp32 [B, s, S].
        shares: fp32 [B, s, S], not negative; see ``attention_share``.
        hidden: bool [B or 1, 1, s, S], True = left out of the softmax.
        rows: queries of the whole batch.

    Source: DeepSeek-AI, 2025 (DeepSeek-V3.2), equations 3 and 4; Megatron-LM
    ``compute_dsa_indexer_loss`` (constants).
    """
    checks.same_shape("index_loss", scores.shape, shares.shape)
    _check_hidden("index_loss", scores, hidden)
    return chosen.kernels.index_loss(scores, shares, hidden, rows)


# ---- plain kernels: no graph ---------------------------------------------------------------------


def hidden_but_top(scores: Tensor, hidden: Tensor, count: int) -> Tensor:
    """Hide all but the keys with the highest scores of each query; the earlier one of equals stays.

    Args:
        scores: fp32 [B, s, S].
        hidden: bool [B or 1, 1, s, S]: keys that are hidden anyway.
        count: keys that a query sees at most.

    Returns:
        bool [B, 1, s, S], True = hidden.
    """
    _check_hidden("hidden_but_top", scores, hidden)
    return chosen.kernels.hidden_but_top(scores, hidden, count)


def attention_share(q: Tensor, k: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """What each key gets of the attention of a query, summed over the heads: fp32 [B, s, S].

    Shapes: q [s, B, N, E]; k [S, B, N, E]; hidden bool [B or 1, 1, s, S].
    """
    checks.floating("attention_share", q.dtype, k.dtype)
    checks.same_shape("attention_share", q.shape[1:], k.shape[1:])
    return chosen.kernels.attention_share(q, k, hidden, scale)


def _check_hidden(name: str, scores: Tensor, hidden: Tensor) -> None:
    batch, rows, columns = scores.shape
    wanted = (hidden.shape[0], 1, rows, columns)
    if hidden.dtype != ms.bool_ or hidden.shape != wanted or hidden.shape[0] not in (1, batch):
        raise ValueError(
            f"{name}: hidden is {hidden.dtype} {tuple(hidden.shape)} for scores "
            f"{tuple(scores.shape)}; it is bool [B or 1, 1, s, S]"
        )
