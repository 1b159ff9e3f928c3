# SPDX-License-Identifier: Apache-2.0
"""Scores, choices and sums of a mixture of experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.portable.activations import sigmoid
from mindspeed_ms.ops.portable.arrays import Array, store, tensor_of, wide
from mindspeed_ms.ops.portable.dropout import draw, philox_words

Context = Any


def _softmax(x: Array) -> Array:
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _host_ids(ids: Tensor) -> Array:
    return memory.as_numpy(memory.contiguous(ids))


class _Scores(autograd.Function):
    """Softmax: ``dx = p * (dp - sum(p * dp))``; sigmoid: ``dx = p * (1 - p) * dp``.

    Root of softplus: ``dx = sigmoid(x) / (2 p) * dp`` with ``sigmoid(x) = 1 - exp(-p^2)``.
    """

    @staticmethod
    def forward(ctx: Context, logits: Tensor, function: str) -> Tensor:
        x = wide(logits)
        y = tensor_of(_SCORES[function](x))
        ctx.save_for_backward(y)
        ctx.function = function
        return y

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        p, dp = wide(y), wide(dy)
        if ctx.function == "softmax":
            return tensor_of(p * (dp - (p * dp).sum(axis=-1, keepdims=True))), None
        if ctx.function == "sqrtsoftplus":
            return tensor_of(-np.expm1(-p * p) / (2.0 * p) * dp), None
        return tensor_of(p * (1.0 - p) * dp), None


def _sqrt_softplus(x: Array) -> Array:
    return np.sqrt(np.maximum(np.logaddexp(x, np.float32(0)), np.float32(1e-30)))


_SCORES = {"softmax": _softmax, "sigmoid": sigmoid, "sqrtsoftplus": _sqrt_softplus}


def router_scores(logits: Tensor, function: str) -> Tensor:
    """See ``ops.router_scores``."""
    return _Scores.apply(logits, function)


class _Normalized(autograd.Function):
    """``y = x / z`` with ``z = sum(x) + 1e-20``; ``dx = (dy - sum(dy * y)) / z``."""

    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        values = wide(x)
        return tensor_of(values / _row_sums(values))

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        values, grad = wide(x), wide(dy)
        total = _row_sums(values)
        return tensor_of((grad - (grad * values).sum(axis=-1, keepdims=True) / total) / total)


def _row_sums(values: Array) -> Array:
    return values.sum(axis=-1, keepdims=True) + np.float32(1e-20)


def normalized_rows(scores: Tensor) -> Tensor:
    """See ``ops.normalized_rows``."""
    return _Normalized.apply(scores)


class _TakeColumns(autograd.Function):
    """``y[t, j] = x[t, columns[t, j]]``; the gradient goes back to those places."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.shape = tuple(x.shape)
        index = _host_ids(columns)
        taken = np.take_along_axis(wide(x), np.maximum(index, 0), axis=1)
        return tensor_of(np.where(index >= 0, taken, np.float32(0)))

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, None]:
        (columns,) = ctx.saved_tensors
        index = _host_ids(columns)
        grad = np.zeros(ctx.shape, np.float32)
        row, place = np.nonzero(index >= 0)
        grad[row, index[row, place]] = wide(dy)[row, place]
        return tensor_of(grad), None


def take_columns(x: Tensor, columns: Tensor) -> Tensor:
    """See ``ops.take_columns``."""
    return _TakeColumns.apply(x, columns)


class _WeightedTotal(autograd.Function):
    """``y = sum(x * w)``; ``dx = dy * w``."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        total = (wide(x) * wide(weights)).sum(dtype=np.float64)
        return tensor_of(np.array(total, np.float32))

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return tensor_of(wide(weights) * wide(dy)), None


def weighted_total(x: Tensor, weights: Tensor) -> Tensor:
    """See ``ops.weighted_total``."""
    return _WeightedTotal.apply(x, weights)


class _SquaredLogSumExp(autograd.Function):
    """``y = mean(l^2)`` with ``l = logsumexp(x)``; ``dx = dy * 2 l / T * softmax(x)``."""

    @staticmethod
    def forward(ctx: Context, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return tensor_of(np.array(np.square(_log_sum(wide(logits))).mean(), np.float32))

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        x = wide(logits)
        factor = 2.0 * _log_sum(x) / len(x) * wide(dy).item()
        return tensor_of((factor[:, None] * _softmax(x)).astype(np.float32))


def _log_sum(x: Array) -> Array:
    top = x.max(axis=-1).astype(np.float64)
    return top + np.log(np.exp(x - top[:, None]).sum(axis=-1))


def squared_logsumexp(logits: Tensor) -> Tensor:
    """See ``ops.squared_logsumexp``."""
    return _SquaredLogSumExp.apply(logits)


class _CombineRows(autograd.Function):
    """``drows[places[t, j]] = probs[t, j] * dy[t]``; ``dprobs[t, j] = rows[places[t, j]] . dy[t]``.

    Rows that no place names get a gradient of zero.
    """

    @staticmethod
    def forward(ctx: Context, rows: Tensor, probs: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(rows, probs, places)
        values, weights, index = wide(rows), wide(probs), _host_ids(places)
        y = np.zeros((len(index), rows.shape[1]), np.float32)
        for choice in range(index.shape[1]):
            tokens, here = _named(index[:, choice])
            if len(tokens) == len(index):
                y += weights[:, choice, None] * values[here]
            else:
                y[tokens] += weights[tokens, choice, None] * values[here]
        return tensor_of(y, rows.dtype)

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, probs, places = ctx.saved_tensors
        values, weights, index = wide(rows), wide(probs), _host_ids(places)
        grad = wide(dy)
        drows = np.zeros(values.shape, np.float32)
        dprobs = np.zeros(weights.shape, np.float32)
        for choice in range(index.shape[1]):
            tokens, here = _named(index[:, choice])
            part = grad if len(tokens) == len(index) else grad[tokens]
            drows[here] = weights[tokens, choice, None] * part
            dprobs[tokens, choice] = np.einsum("th,th->t", values[here], part)
        return tensor_of(drows, rows.dtype), tensor_of(dprobs), None


def _named(places: Array) -> tuple[Array, Array]:
    """Tokens that name a row, and the rows."""
    tokens = np.flatnonzero(places >= 0)
    return tokens, places[tokens]


def combine_rows(rows: Tensor, probs: Tensor, places: Tensor) -> Tensor:
    """See ``ops.combine_rows``."""
    return _CombineRows.apply(rows, probs, places)


def largest_columns(
    scores: Tensor,
    k: int,
    num_groups: int | None,
    group_topk: int | None,
    group_scores: int | None,
) -> Tensor:
    """See ``ops.largest_columns``."""
    values = wide(scores)
    if num_groups is not None and group_topk is not None:
        groups = values.reshape(len(values), num_groups, -1)
        best = -np.sort(-groups, axis=-1)[:, :, :group_scores].sum(axis=-1)
        chosen = _largest(best, group_topk)
        is_open = np.zeros(best.shape, bool)
        np.put_along_axis(is_open, chosen, True, axis=1)
        values = np.where(is_open[:, :, None], groups, -np.inf).reshape(values.shape)
    return memory.from_numpy(np.ascontiguousarray(_largest(values, k), np.int32))


def _largest(values: Array, k: int) -> Array:
    """Columns of the k largest values of each row; argmax takes the first of equals."""
    if k > 8:  # one sort costs less than many passes
        return np.argsort(-values, axis=1, kind="stable")[:, :k]
    rest = values.copy()
    columns = np.empty((len(values), k), np.int64)
    rows = np.arange(len(values))
    for place in range(k):
        columns[:, place] = rest.argmax(axis=1)
        rest[rows, columns[:, place]] = -np.inf
    return columns


def _bounds(counts: Sequence[int]) -> list[tuple[int, int]]:
    ends = np.cumsum([0, *counts])
    return [(int(start), int(end)) for start, end in zip(ends, ends[1:], strict=False)]


def grouped_linear_forward(x: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See ``ops.grouped_linear_forward``."""
    values = wide(x)
    y = np.empty((len(values), weights[0].shape[0]), np.float32)
    for weight, (start, end) in zip(weights, _bounds(counts), strict=True):
        y[start:end] = values[start:end] @ wide(weight).T
    return tensor_of(y, x.dtype)


def grouped_linear_dgrad(dy: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """See ``ops.grouped_linear_dgrad``."""
    values = wide(dy)
    dx = np.empty((len(values), weights[0].shape[1]), np.float32)
    for weight, (start, end) in zip(weights, _bounds(counts), strict=True):
        dx[start:end] = values[start:end] @ wide(weight)
    return tensor_of(dx, dy.dtype)


def grouped_linear_wgrad_accumulate(
    dy: Tensor, x: Tensor, main_grads: Sequence[Tensor], counts: Sequence[int]
) -> None:
    """See ``ops.grouped_linear_wgrad_accumulate``."""
    grad, values = wide(dy), wide(x)
    for main_grad, (start, end) in zip(main_grads, _bounds(counts), strict=True):
        store(main_grad, wide(main_grad) + grad[start:end].T @ values[start:end])


def product_fp64(a: Tensor, b: Tensor) -> Tensor:
    """See ``ops.product_fp64``."""
    product = wide(a).astype(np.float64) @ wide(b).astype(np.float64).T
    return tensor_of(product.astype(np.float32))


def _unit(count: int, generator: Generator) -> Array:
    """Numbers in (0, 1), from the upper 24 bits of each word."""
    seed, offset = draw(generator, count)
    words = philox_words(seed, offset, count)
    return ((words >> np.uint32(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)


def random_uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """See ``ops.random_uniform``."""
    unit = _unit(math.prod(shape), generator).reshape(shape)
    return tensor_of(np.float32(low) + unit * np.float32(high - low))


def random_normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """See ``ops.random_normal``; Box and Muller, 1958."""
    count = math.prod(shape)
    radius, angle = np.split(_unit(2 * count, generator), 2)
    values = np.sqrt(-2.0 * np.log(radius)) * np.cos(np.float32(2.0 * math.pi) * angle)
    return tensor_of(values.astype(np.float32).reshape(shape))
