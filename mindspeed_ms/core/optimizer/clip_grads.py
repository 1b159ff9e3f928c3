# SPDX-License-Identifier: Apache-2.0
"""Norms and counts over the model, from what each rank holds of it."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group, ReduceOp
from mindspeed_ms.core.parameter import shard_of


def counts_in_norm(parameter: Parameter, tp_group: Group, expert_tp_group: Group) -> bool:
    """Whether this rank contributes a parameter to a norm over the model.

    A tied copy is left out, and a parameter that every tensor parallel rank holds in full counts
    on the first of them only.

    Source: Megatron-LM ``get_main_grads_for_grad_norm`` (rules).
    """
    shard = shard_of(parameter)
    group = expert_tp_group if shard.is_expert else tp_group
    return not shard.shared and (shard.partition_dim >= 0 or group.rank == 0)


def clip_coefficient(norm: float, max_norm: float) -> float:
    """Factor on the gradients that brings their norm to ``max_norm``; 1 if it is smaller already.

    Source: Megatron-LM ``clip_grad_by_total_norm_fp32``: max_norm / (norm + 1e-6).
    """
    coefficient = max_norm / (norm + 1.0e-6)
    return coefficient if coefficient < 1.0 else 1.0


def sum_over(value: float, group: Group) -> float:
    """Sum of a number over the ranks of a group, in fp32 between them."""
    if group.size == 1:
        return float(value)
    total = memory.from_numpy(np.array([value], np.float32))
    comm.all_reduce(total, group=group)
    return float(memory.as_numpy(total)[0])


def any_over(flag: bool, group: Group) -> bool:
    """True when the flag is set on any rank of the group."""
    if group.size == 1:
        return flag
    value = memory.from_numpy(np.array([flag], np.float32))
    comm.all_reduce(value, op=ReduceOp.MAX, group=group)
    return bool(memory.as_numpy(value)[0])
