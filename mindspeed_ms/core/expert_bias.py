# SPDX-License-Identifier: Apache-2.0
"""Balance of experts by a bias on their scores, which is adjusted after every step, not learnt.

Source: Wang et al., 2024 (auxiliary-loss-free load balancing); Megatron-LM
``get_updated_expert_bias`` (rule and groups).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter
from mindspore.nn import Cell

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import create_parameter, named_buffers


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


def update_expert_biases(modules: Sequence[Cell]) -> None:
    """Raise the bias of experts that got fewer tokens than the mean, and lower that of the others.

    Parallelism: collective over tensor x data x context parallel ranks, which hold the same biases.
    """
    biases = [
        param
        for module in modules
        for _, param in named_buffers(module)
        if getattr(param, "expert_load", None) is not None
    ]
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
