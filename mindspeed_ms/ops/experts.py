# SPDX-License-Identifier: Apache-2.0
"""Operations of a mixture of experts: scores, choices, sums of chosen rows, products per expert.

Legend: T tokens, E experts, K choices per token, N rows sorted by expert, H hidden size. Scores are
fp32. The functions are exported by ``ops``; the first part is differentiable, the second is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from mindspore import Tensor

from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops import checks
from mindspeed_ms.ops.selection import chosen

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


ScoreFunction: TypeAlias = Literal["softmax", "sigmoid", "sqrtsoftplus"]


def router_scores(logits: Tensor, function: ScoreFunction) -> Tensor:
    """Softmax over each row, or of each element the sigmoid, or the root of its softplus.

    Shapes: [T, E] -> fp32 [T, E].
    """
    if function not in ("softmax", "sigmoid", "sqrtsoftplus"):
        raise ValueError(
            f"router_scores: function {function!r}; use 'softmax', 'sigmoid' or 'sqrtsoftplus'"
        )
    checks.float32_matrix("router_scores", logits.shape, logits.dtype)
    return chosen.kernels.router_scores(logits, function)


def normalized_rows(scores: Tensor) -> Tensor:
    """Each row divided by (its sum + 1e-20). Shapes: fp32 [T, K] -> [T, K]."""
    checks.float32_matrix("normalized_rows", scores.shape, scores.dtype)
    return chosen.kernels.normalized_rows(scores)


def take_columns(x: Tensor, columns: Tensor) -> Tensor:
    """``x[t, columns[t, j]]``, 0 where the column is negative; one that x lacks is an error.

    Shapes: x fp32 [T, E]; columns int32 [T, K], different within a row; result [T, K].
    """
    checks.float32_matrix("take_columns", x.shape, x.dtype)
    checks.integers("take_columns", columns.dtype)
    return chosen.kernels.take_columns(x, columns)


def weighted_total(x: Tensor, weights: Tensor) -> Tensor:
    """Scalar ``sum(x * weights)``; weights get no gradient. Shapes: fp32 [T, E] both."""
    checks.float32_matrix("weighted_total", x.shape, x.dtype)
    checks.same_shape("weighted_total", x.shape, weights.shape)
    return chosen.kernels.weighted_total(x, weights)


def squared_logsumexp(logits: Tensor) -> Tensor:
    """Scalar mean over the rows of ``log(sum(exp(row)))^2``. Shapes: fp32 [T, E].

    Source: Zoph et al., 2022 (ST-MoE), router z-loss.
    """
    checks.float32_matrix("squared_logsumexp", logits.shape, logits.dtype)
    return chosen.kernels.squared_logsumexp(logits)


def combine_rows(rows: Tensor, probs: Tensor, places: Tensor) -> Tensor:
    """``y[t] = sum over j of probs[t, j] * rows[places[t, j]]``, summed in fp32.

    A negative place adds nothing, and its probability gets no gradient. No row is named twice, and
    none that ``rows`` lacks (on CPU an IndexError): places come from the router's own choices.

    Shapes: rows [N, H]; probs fp32 [T, K]; places int32 [T, K]; result [T, H] in the type of rows.
    """
    checks.floating("combine_rows", rows.dtype)
    checks.float32_matrix("combine_rows", probs.shape, probs.dtype)
    checks.integers("combine_rows", places.dtype)
    checks.same_shape("combine_rows", probs.shape, places.shape)
    return chosen.kernels.combine_rows(rows, probs, places)


# ---- plain kernels: no graph ---------------------------------------------------------------------


def largest_columns(
    scores: Tensor,
    k: int,
    num_groups: int | None = None,
    group_topk: int | None = None,
    group_scores: int | None = None,
) -> Tensor:
    """Columns of the ``k`` largest scores of each row, largest first, the lower one of equals.

    With groups only the ``group_topk`` groups of neighbouring columns take part whose
    ``group_scores`` (default ``k // group_topk``) best scores have the largest sum.

    Shapes: scores fp32 [T, E] -> int32 [T, k].
    Source: DeepSeek-AI, 2024 (DeepSeek-V2, device-limited routing; V3, node-limited routing).
    """
    checks.float32_matrix("largest_columns", scores.shape, scores.dtype)
    experts = scores.shape[1]
    if not 1 <= k <= experts:
        raise ValueError(f"largest_columns: k {k}; rows have {experts} columns, use 1 to {experts}")
    if num_groups is not None and group_topk is not None:
        if experts % num_groups or not 1 <= group_topk <= min(num_groups, k):
            raise ValueError(
                f"largest_columns: {group_topk} of {num_groups} groups for {experts} columns and "
                f"k {k}; groups must divide the columns, and at most k of them are taken"
            )
        if group_topk * (experts // num_groups) < k:
            raise ValueError(
                f"largest_columns: {group_topk} groups of {experts // num_groups} columns hold "
                f"fewer than k ({k}); take more groups"
            )
        best = group_scores or k // group_topk
        if best > experts // num_groups:
            raise ValueError(
                f"largest_columns: the {best} best scores of groups of {experts // num_groups} "
                "columns; take fewer"
            )
        return chosen.kernels.largest_columns(scores, k, num_groups, group_topk, best)
    return chosen.kernels.largest_columns(scores, k, None, None, None)


def grouped_linear_forward(x: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """One product per group of rows: ``y_g = x_g @ weights[g].T``.

    Shapes: x [N, in] with the rows of group g one after the other, ``counts[g]`` of them; weights
    [out, in] each; result [N, out].
    """
    _check_groups("grouped_linear_forward", x, weights, counts, 1)
    return chosen.kernels.grouped_linear_forward(x, weights, counts)


def grouped_linear_dgrad(dy: Tensor, weights: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """``dx_g = dy_g @ weights[g]``. Shapes: dy [N, out], weights [out, in], result [N, in]."""
    _check_groups("grouped_linear_dgrad", dy, weights, counts, 0)
    return chosen.kernels.grouped_linear_dgrad(dy, weights, counts)


def grouped_linear_wgrad_accumulate(
    dy: Tensor, x: Tensor, main_grads: Sequence[Tensor], counts: Sequence[int]
) -> None:
    """``main_grads[g] += dy_g.T @ x_g`` in place. Shapes: main_grads fp32 [out, in], contiguous."""
    checks.floating("grouped_linear_wgrad_accumulate", dy.dtype, x.dtype)
    for main_grad in main_grads:
        checks.accumulator(
            "grouped_linear_wgrad_accumulate", main_grad, (dy.shape[-1], x.shape[-1])
        )
    _check_counts("grouped_linear_wgrad_accumulate", (dy, x), len(main_grads), counts)
    chosen.kernels.grouped_linear_wgrad_accumulate(dy, x, main_grads, counts)


def product_fp64(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b.T`` computed in float64 and rounded to fp32. Shapes: [m, k], [n, k] -> fp32 [m, n].

    On the host in every kernel set: NPUs have no float64 product.
    """
    return chosen.kernels.product_fp64(a, b)


def random_uniform(shape: Sequence[int], low: float, high: float, generator: Generator) -> Tensor:
    """Fp32 numbers in [low, high); the same in every kernel set."""
    return chosen.kernels.random_uniform(tuple(shape), low, high, generator)


def random_normal(shape: Sequence[int], generator: Generator) -> Tensor:
    """Standard normal fp32 numbers; the same in every kernel set."""
    return chosen.kernels.random_normal(tuple(shape), generator)


def _check_groups(
    name: str, x: Tensor, weights: Sequence[Tensor], counts: Sequence[int], dim: int
) -> None:
    for weight in weights:
        checks.linear(name, x.shape, x.dtype, weight.shape, weight.dtype, dim)
    _check_counts(name, (x,), len(weights), counts)


def _check_counts(name: str, tensors: Sequence[Tensor], groups: int, counts: Sequence[int]) -> None:
    if len(counts) != groups or any(
        tensor.ndim != 2 or tensor.shape[0] != sum(counts) for tensor in tensors
    ):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(
            f"{name}: rows per group {list(counts)} for {groups} weights and inputs {shapes}; give "
            "one count per weight, which sum to the rows"
        )
