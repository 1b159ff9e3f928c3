# SPDX-License-Identifier: Apache-2.0
"""Which row goes where when tokens travel to their experts: pure functions of integers.

Legend: T tokens of a rank, K choices per token, E experts, P expert parallel ranks, Q expert tensor
parallel ranks, N rows (a row is a token on its way to one expert). All arrays are NumPy's; -1 means
"none" everywhere: a choice that was dropped, a row that only pads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

DropPolicy = Literal["probs", "position"]


def expert_capacity(num_tokens: int, topk: int, num_experts: int, factor: float) -> int:
    """Rows an expert accepts: ``factor`` times its even share, rounded up."""
    return math.ceil(num_tokens * topk / num_experts * factor)


def drop_over_capacity(
    experts: np.ndarray, probs: np.ndarray, capacity: int, policy: DropPolicy
) -> np.ndarray:
    """The choices [T, K] with -1 for those beyond the capacity of their expert.

    Args:
        experts: chosen experts [T, K].
        probs: their probabilities [T, K].
        capacity: rows per expert.
        policy: ``probs`` keeps the most probable, ``position`` the first tokens of the batch;
            equal ones are kept in the order of the tokens.
    """
    flat = experts.reshape(-1)
    order = (
        np.lexsort((-probs.reshape(-1), flat))
        if policy == "probs"
        else np.argsort(flat, kind="stable")
    )
    ordered = flat[order]
    first = np.searchsorted(ordered, ordered, side="left")
    kept = np.arange(len(flat)) - first < capacity
    result = np.full(flat.shape, -1, experts.dtype)
    result[order[kept]] = ordered[kept]
    return result.reshape(experts.shape)


@dataclass(frozen=True, slots=True)
class SortedRows:
    """The tokens of one rank, a row for every choice, in the order of the experts."""

    tokens: np.ndarray
    """Token of each row, int32 [N]; -1 for a row that pads."""

    places: np.ndarray
    """Row of each choice, int32 [T, K]; -1 where it was dropped."""

    counts: np.ndarray
    """Rows per expert, int64 [E], those that pad included."""


def sort_rows(experts: np.ndarray, num_experts: int, capacity: int | None = None) -> SortedRows:
    """Sort choices by expert; those of one expert stay in the order of the tokens.

    Args:
        experts: chosen experts [T, K], -1 for none.
        num_experts: E.
        capacity: pad the rows of every expert to this number, which none exceeds.
    """
    flat = experts.reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[np.searchsorted(flat[order], 0) :]
    counts = np.bincount(flat[order], minlength=num_experts).astype(np.int64)
    rows = np.arange(len(order))
    if capacity is not None:
        first = np.cumsum(counts) - counts
        rows += (np.arange(num_experts) * capacity - first).repeat(counts)
        counts = np.full(num_experts, capacity, np.int64)
    tokens = np.full(int(counts.sum()), -1, np.int32)
    tokens[rows] = order // experts.shape[1]
    places = np.full(flat.shape, -1, np.int32)
    places[order] = rows
    return SortedRows(tokens, places.reshape(experts.shape), counts)


@dataclass(frozen=True, slots=True)
class ExchangePlan:
    """How the rows of one rank reach its peers, and how it sorts those it gets."""

    input_splits: tuple[int, ...]
    """Rows sent to each expert parallel rank."""

    output_splits: tuple[int, ...]
    """Rows received from each expert parallel rank."""

    padded_rows: int
    """Rows that every expert tensor parallel rank contributes to the gather, its padding included;
    without expert tensor parallelism the rows received."""

    order: np.ndarray
    """Gathered row of each row sorted by local expert, int32."""

    back: np.ndarray
    """Sorted row of each gathered row, int32 [Q * padded_rows]; -1 for padding."""

    counts: tuple[int, ...]
    """Sorted rows per local expert."""

    @property
    def received_rows(self) -> int:
        """Rows received from the expert parallel ranks."""
        return sum(self.output_splits)

    @property
    def is_sorted(self) -> bool:
        """True when the gathered rows are in the order of the experts already."""
        size = len(self.order)
        return size == len(self.back) and bool((self.order == np.arange(size)).all())


def plan_exchange(counts: np.ndarray, expert_rank: int, expert_tensor_rank: int) -> ExchangePlan:
    """The plan of one rank from the row counts of all.

    Args:
        counts: rows for every expert on every rank, [P, Q, E]; experts are cut into P equal blocks.
        expert_rank: position among the P.
        expert_tensor_rank: position among the Q.
    """
    ranks, tensor_ranks, num_experts = counts.shape
    local = num_experts // ranks
    mine = slice(expert_rank * local, (expert_rank + 1) * local)
    arriving = counts[:, :, mine].transpose(1, 0, 2)  # [Q, P, local]
    rows_of = arriving.sum(axis=(1, 2))
    padded = int(rows_of.max())
    # First gathered row of every block: blocks lie one behind the other, per tensor rank.
    flat = arriving.reshape(tensor_ranks, -1)
    starts = np.cumsum(flat, axis=1) - flat + np.arange(tensor_ranks)[:, None] * padded
    starts = starts.reshape(arriving.shape)
    sizes = arriving.transpose(2, 0, 1).reshape(-1)  # sorted: expert, tensor rank, source
    first = starts.transpose(2, 0, 1).reshape(-1)
    within = np.arange(int(sizes.sum())) - (np.cumsum(sizes) - sizes).repeat(sizes)
    order = (first.repeat(sizes) + within).astype(np.int32)
    back = np.full(tensor_ranks * padded, -1, np.int32)
    back[order] = np.arange(len(order), dtype=np.int32)
    sent = counts[expert_rank, expert_tensor_rank].reshape(ranks, local).sum(axis=1)
    received = counts[:, expert_tensor_rank, mine].sum(axis=1)
    return ExchangePlan(
        input_splits=tuple(int(rows) for rows in sent),
        output_splits=tuple(int(rows) for rows in received),
        padded_rows=padded,
        order=order,
        back=back,
        counts=tuple(int(rows) for rows in arriving.sum(axis=(0, 1))),
    )


def padding_of(rows: int, padded: int) -> np.ndarray:
    """Index that appends padding to the first ``rows`` rows, int32 [padded]."""
    index = np.full(padded, -1, np.int32)
    index[:rows] = np.arange(rows, dtype=np.int32)
    return index
