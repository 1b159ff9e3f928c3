# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts on an NPU: composed operators, and the grouped product of CANN.

Random numbers and float64 products come from the host: NPUs draw other bits and have no float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
from mindspore import Tensor, mint, ops
from mindspore.ops import auto_generate

from mindspeed_ms.backend import autograd
from mindspeed_ms.ops.portable.experts import product_fp64, random_normal, random_uniform

__all__ = [
    "combine_rows",
    "grouped_linear_dgrad",
    "grouped_linear_forward",
    "grouped_linear_wgrad_accumulate",
    "largest_columns",
    "normalized_rows",
    "product_fp64",
    "random_normal",
    "random_uniform",
    "router_scores",
    "squared_logsumexp",
    "take_columns",
    "weighted_total",
]

_SMALL, _LARGE = 1e-20, 3.0e38


def router_scores(logits: Tensor, function: str) -> Tensor:
    """See ``ops.router_scores``."""
    if function == "sqrtsoftplus":
        return mint.sqrt(mint.add(mint.nn.functional.softplus(logits), 1e-30))
    return mint.softmax(logits, -1) if function == "softmax" else mint.sigmoid(logits)


def normalized_rows(scores: Tensor) -> Tensor:
    """See ``ops.normalized_rows``."""
    return mint.div(scores, mint.add(mint.sum(scores, -1, True), _SMALL))


def take_columns(x: Tensor, columns: Tensor) -> Tensor:
    """See ``ops.take_columns``."""
    here = mint.ge(columns, 0).astype(x.dtype)
    index = mint.mul(columns, here.astype(columns.dtype)).astype(ms.int64)
    return mint.mul(mint.gather(x, 1, index), here)


def weighted_total(x: Tensor, weights: Tensor) -> Tensor:
    """See ``ops.weighted_total``."""
    return mint.sum(mint.mul(x, weights))


def squared_logsumexp(logits: Tensor) -> Tensor:
    """See ``ops.squared_logsumexp``."""
    top = autograd.detach(mint.amax(logits, -1, True))
    total = mint.sum(mint.exp(mint.sub(logits, top)), -1, True)
    return mint.mean(mint.square(mint.add(mint.log(total), top)))


def combine_rows(rows: Tensor, probs: Tensor, places: Tensor) -> Tensor:
    """See ``ops.combine_rows``."""
    total = None
    for choice in range(places.shape[1]):
        place = places[:, choice]
        here = mint.ge(place, 0).astype(place.dtype)
        if rows.shape[0]:
            taken = mint.nn.functional.embedding(mint.mul(place, here), rows).astype(ms.float32)
        else:
            taken = mint.zeros((places.shape[0], rows.shape[1]), dtype=ms.float32)
        weight = mint.mul(probs[:, choice], here.astype(ms.float32)).reshape((-1, 1))
        part = mint.mul(taken, weight)
        total = part if total is None else mint.add(total, part)
    assert total is not None, "a token has at least one choice"
    return total.astype(rows.dtype)


def largest_columns(
    scores: Tensor,
    k: int,
    num_groups: int | None,
    group_topk: int | None,
    group_scores: int | None,
) -> Tensor:
    """See ``ops.largest_columns``; which of two equal scores comes first is the kernel's choice."""
    with autograd.no_grad():
        if num_groups is not None and group_topk is not None and group_scores is not None:
            groups = scores.reshape((scores.shape[0], num_groups, -1))
            best = mint.sum(mint.topk(groups, group_scores, -1)[0], -1)
            last = mint.topk(best, group_topk, -1)[0][:, -1:]
            is_open = mint.ge(best, last).astype(scores.dtype).reshape((*best.shape, 1))
            shut = mint.mul(mint.sub(is_open, 1.0), _LARGE)
            scores = mint.add(mint.mul(groups, is_open), shut).reshape(scores.shape)
        return mint.topk(scores, k, -1)[1].astype(ms.int32)


def _parts(x: Tensor, counts: Sequence[int]) -> list[Tensor]:
    return list(mint.split(x, list(counts), 0))


def _grouped(x: Tensor, weights: Sequence[Any], counts: Sequence[int]) -> Tensor:
    """``y_g = x_g @ weights[g]`` in one launch; empty groups are left out."""
    used = [group for group, count in enumerate(counts) if count]
    parts = _parts(x, counts)
    products = auto_generate.grouped_matmul(
        [parts[group] for group in used],
        [weights[group] for group in used],
        split_item=0,
        group_type=-1,
    )
    return ops.cat(list(products), axis=0)


def grouped_linear_forward(x: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See ``ops.grouped_linear_forward``."""
    with autograd.no_grad():
        if not sum(counts):
            return mint.zeros((0, weights[0].shape[0]), dtype=x.dtype)
        return _grouped(x, [mint.transpose(weight, 0, 1) for weight in weights], counts)


def grouped_linear_dgrad(dy: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See ``ops.grouped_linear_dgrad``."""
    with autograd.no_grad():
        if not sum(counts):
            return mint.zeros((0, weights[0].shape[1]), dtype=dy.dtype)
        return _grouped(dy, list(weights), counts)


def grouped_linear_wgrad_accumulate(
    dy: Tensor, x: Tensor, main_grads: Sequence[Tensor], counts: Sequence[int]
) -> None:
    """See ``ops.grouped_linear_wgrad_accumulate``; a bf16 product is rounded before it is added."""
    with autograd.no_grad():
        grads, values = _parts(dy, counts), _parts(x, counts)
        for group, main_grad in enumerate(main_grads):
            if counts[group]:
                product = mint.matmul(mint.transpose(grads[group], 0, 1), values[group])
                main_grad.add_(product.astype(ms.float32))
