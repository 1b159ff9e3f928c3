# SPDX-License-Identifier: Apache-2.0
"""Balance of experts by numbers that are adjusted after every step, not learnt.

A bias on their scores follows the load; thresholds of their logits follow the quantiles.

Source: Wang et al., 2024 (auxiliary-loss-free load balancing); Megatron-LM
``get_updated_expert_bias`` (rule and groups) and its ``quantile_balancing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import create_parameter, is_frozen


@dataclass(slots=True)
class ExpertLoad:
    """What the bias of one router is adjusted by; an attribute of the bias."""

    tokens: np.ndarray
    """Tokens this rank has sent to each expert since the last update."""
    update_rate: float
    """Step of an update."""


def create_expert_bias(num_experts: int, update_rate: float) -> Parameter:
    """An fp32 bias of zeros [num_experts] that no optimizer touches; checkpoints keep it."""
    bias = create_parameter((num_experts,), lambda shape: np.zeros(shape, np.float32), name="bias")
    bias.requires_grad = False
    bias.expert_load = ExpertLoad(np.zeros(num_experts, np.float64), update_rate)
    return bias


@dataclass(slots=True)
class Quantiles:
    """What the thresholds of one router follow; an attribute of them."""

    total: np.ndarray
    """Sum of the quantiles of the micro-batches since the last update."""
    ema: float
    """Share of the old thresholds in the new ones."""
    num_microbatches: int = 0


def create_thresholds(num_experts: int, ema: float) -> Parameter:
    """Fp32 zeros [num_experts] that no optimizer touches; checkpoints keep them."""
    thresholds = create_parameter(
        (num_experts,), lambda shape: np.zeros(shape, np.float32), name="qb_beta"
    )
    thresholds.requires_grad = False
    thresholds.quantiles = Quantiles(np.zeros(num_experts, np.float32), ema)
    return thresholds


def chosen_by_quantiles(
    logits: np.ndarray, thresholds: np.ndarray, topk: int
) -> tuple[np.ndarray, np.ndarray]:
    """(experts int32 [T, K], quantiles fp32 [E]) of logits [T, E].

    A token takes the K experts that are farthest above their thresholds. The quantile of an expert
    is the threshold at which T K / E tokens would take it, if the K + 1st of each stayed in place.

    Source: Megatron-LM ``qb_dual_update`` (rule).
    """
    tokens, experts = logits.shape
    above = logits - thresholds
    order = np.argsort(-above, axis=1, kind="stable")
    bar = np.take_along_axis(above, order[:, topk : topk + 1], axis=1)
    target = tokens * topk // experts
    wanted = -np.sort(-(logits - bar), axis=0)[min(target, tokens - 1)]
    return np.ascontiguousarray(order[:, :topk], np.int32), wanted.astype(np.float32)


def update_experts(buffers: Sequence[Parameter]) -> None:
    """Update what steers tokens between experts by what this step's tokens chose.

    Beside adapters it stays as it is, like all of the model that they are for.

    Args:
        buffers: of all modules of the rank, those of routers among them.

    Parallelism: collective, over the ranks that the two kinds of it name.
    """
    buffers = [one for one in buffers if not is_frozen(one)]
    _update_biases([one for one in buffers if hasattr(one, "expert_load")])
    _update_thresholds([one for one in buffers if hasattr(one, "quantiles")])


def _update_thresholds(every: Sequence[Parameter]) -> None:
    """Move the thresholds to the mean quantiles of the step, and their mean to 0.

    Parallelism: collective over data x context parallel ranks.
    """
    if not every:
        return
    means = [one.quantiles.total / max(one.quantiles.num_microbatches, 1) for one in every]
    total = memory.from_numpy(np.stack(means).astype(np.float32))
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size > 1:
        comm.all_reduce(total, group=group)
    for param, mean in zip(every, memory.as_numpy(total) / np.float32(group.size), strict=True):
        state = param.quantiles
        ema = np.float32(state.ema)
        new = ema * memory.as_numpy(param) + (np.float32(1.0) - ema) * mean
        memory.copy_(param, memory.from_numpy((new - new.mean()).astype(np.float32)))
        state.total[:] = 0.0
        state.num_microbatches = 0


def _update_biases(biases: Sequence[Parameter]) -> None:
    """Raise the bias of experts that got fewer tokens than the mean, and lower that of the others.

    Parallelism: collective over tensor x data x context parallel ranks, which hold the same biases.
    """
    if not biases:
        return
    tokens = memory.from_numpy(np.concatenate([bias.expert_load.tokens for bias in biases]))
    group = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    if group.size > 1:
        comm.all_reduce(tokens, group=group)
    counts = memory.as_numpy(tokens)
    start = 0
    for bias in biases:
        load = bias.expert_load
        part = counts[start : start + len(load.tokens)]
        start += len(load.tokens)
        change = np.sign(part.mean() - part).astype(np.float32) * np.float32(load.update_rate)
        memory.copy_(bias, memory.from_numpy(memory.as_numpy(bias) + change))
        load.tokens[:] = 0.0
