# SPDX-License-Identifier: Apache-2.0
"""Losses that keep experts evenly used. Legend: T tokens of a rank, S of a sequence, B sequences,
E experts, K choices per token.

f_i is the share of all choices that expert i gets, P_i its mean probability; the loss is
E * sum over i of f_i * P_i, which is 1 for an even load. f has no gradient. Ranks that share
sequences each add the part of their own tokens to the sum.
"""  # noqa: D205 - the legend belongs to the first paragraph

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group

LOSS_NAMES = {
    "aux_loss": "load_balancing_loss",
    "seq_aux_loss": "seq_load_balancing_loss",
    "global_aux_loss": "global_load_balancing_loss",
}
"""Load balancing type -> name in the log."""

GROUP_LOSS = "load_balancing_device_level_loss"
VISIT_LOSS = "load_balancing_comm_level_loss"
"""Names of the losses that balance groups of experts in the log."""

Z_LOSS = "z_loss"
"""Name of the router's z-loss in the log."""


def summed_counts(experts: np.ndarray, num_experts: int, group: Group) -> np.ndarray:
    """Choices per expert [E], over the ranks of a group."""
    counts = np.bincount(experts.reshape(-1), minlength=num_experts).astype(np.float32)
    return _sum(counts, group)


def _sum(counts: np.ndarray, group: Group) -> np.ndarray:
    if group.size == 1:
        return counts
    total = memory.from_numpy(np.ascontiguousarray(counts))
    comm.all_reduce(total, group=group)
    return memory.as_numpy(total)


def batch_loss(probs: Tensor, counts: np.ndarray, num_tokens: int, topk: int, ranks: int) -> Tensor:
    """This rank's part of the loss of a micro-batch; fp32 scalar.

    Args:
        probs: probabilities of this rank's tokens over all experts [T, E].
        counts: choices per expert [E], over as many tokens as ``num_tokens``.
        num_tokens: tokens that were counted.
        topk: K.
        ranks: number of ranks that share the sequences; their parts sum to the loss.

    Source: Fedus et al., 2021; Megatron-LM ``switch_load_balancing_loss_func`` (formula).
    """
    tokens, experts = probs.shape
    share = counts / np.float32(num_tokens * topk)
    weights = share * np.float32(experts / (tokens * ranks))
    return ops.weighted_total(probs, _broadcast(weights, (tokens, experts)))


def sequence_loss(
    probs: Tensor, experts: np.ndarray, batch_size: int, topk: int, group: Group
) -> Tensor:
    """This rank's part of the mean over sequences of the loss of each; fp32 scalar.

    Args:
        probs: [S * B, E], sequence first.
        experts: chosen experts [S * B, K].
        batch_size: B.
        topk: K.
        group: ranks that share the sequences.

    Source: DeepSeek-AI, 2024 (V2, V3); Megatron-LM ``_apply_seq_aux_loss`` (formula).
    """
    tokens, num_experts = probs.shape
    length = tokens // batch_size
    counts = _sum(_counts_by_sequence(experts, batch_size, num_experts), group)
    whole = length * group.size
    weights = counts * np.float32(num_experts / (whole * topk * whole * batch_size))
    full = np.broadcast_to(weights, (length, batch_size, num_experts)).reshape(tokens, num_experts)
    return ops.weighted_total(probs, memory.from_numpy(np.ascontiguousarray(full)))


def _counts_by_sequence(choices: np.ndarray, sequences: int, number: int) -> np.ndarray:
    """How often tokens of each sequence, which take turns, chose each of ``number``; fp32."""
    sequence = np.arange(len(choices)) % sequences
    flat = (sequence[:, None] * number + choices).reshape(-1)
    counts = np.bincount(flat, minlength=sequences * number)
    return counts.reshape(sequences, number).astype(np.float32)


def group_losses(
    probs: Tensor,
    experts: np.ndarray,
    sequences: int,
    groups: tuple[int, int],
    ranks: Group,
) -> tuple[Tensor, Tensor]:
    """This rank's parts of (the loss over groups of experts, that over visits of them); scalars.

    They are the sums over groups of f P, where P is the probability of all its experts; f is the
    mean load of its experts, or how many tokens visit it, relative to an even spread.

    Args:
        probs: [T, E]; tokens of several sequences take turns.
        experts: chosen experts [T, K].
        sequences: take the losses of this many sequences apart, and their mean; 1: all together.
        groups: (number of groups, groups that a token may visit).
        ranks: that share the sequences.

    Source: DeepSeek-AI, 2024 (DeepSeek-V2), equations 26 to 31; MindSpeed-LLM (names in the log).
    """
    (tokens, num_experts), topk = probs.shape, experts.shape[1]
    number, most = groups
    size, whole = num_experts // number, tokens // sequences * ranks.size
    sequence = np.arange(tokens) % sequences
    visits = np.zeros((tokens, number), np.float32)
    np.put_along_axis(visits, experts // size, 1.0, axis=1)
    load = _counts_by_sequence(experts // size, sequences, number)
    visited = visits.reshape(-1, sequences, number).sum(axis=0)
    load, visited = np.split(_sum(np.concatenate([load, visited], axis=1), ranks), 2, axis=1)

    def loss(factors: np.ndarray) -> Tensor:
        weights = factors.repeat(size, axis=1) / np.float32(whole * sequences)
        return ops.weighted_total(probs, memory.from_numpy(weights[sequence]))

    return (
        loss(load * np.float32(number / (whole * topk))),
        loss(visited * np.float32(number / (whole * most))),
    )


@dataclass(slots=True)
class RunningCounts:
    """Choices per expert, averaged over the micro-batches of a step so far."""

    total: np.ndarray
    num_microbatches: int = 0
    step: int = -1

    def mean_with(self, counts: np.ndarray, step: int) -> np.ndarray:
        """Add the counts of a micro-batch; returns the mean. A new step begins anew."""
        if step != self.step:
            self.total[:] = 0.0
            self.num_microbatches, self.step = 0, step
        self.total += counts
        self.num_microbatches += 1
        return (self.total / self.num_microbatches).astype(np.float32)


def _broadcast(row: np.ndarray, shape: tuple[int, int]) -> Tensor:
    return memory.from_numpy(np.ascontiguousarray(np.broadcast_to(row, shape), np.float32))


def sinkhorn(logits: np.ndarray, tolerance: float = 1e-4, limit: int = 1000) -> np.ndarray:
    """Scale exp(logits) [T, E] until its columns have equal sums, and its rows.

    Args:
        logits: fp32.
        tolerance: mean change of the column factors at which to stop.
        limit: rounds at most.

    Source: Clark et al., 2022 (S-BASE); Megatron-LM ``sinkhorn`` (order of the steps).
    """
    cost = np.exp(logits.astype(np.float32))
    tokens, experts = cost.shape
    column = np.ones(experts, np.float32)
    row = np.ones(tokens, np.float32)
    for _ in range(limit):
        row = np.float32(1.0 / tokens) / ((column * cost).sum(axis=1) + np.float32(1e-8))
        new = np.float32(1.0 / experts) / ((row[:, None] * cost).sum(axis=0) + np.float32(1e-8))
        change = np.abs(new - column).mean()
        column = new
        if change <= tolerance:
            break
    return column * cost * row[:, None]
