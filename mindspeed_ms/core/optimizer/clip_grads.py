"""Norms and zeros of all gradients of the model, over all ranks that hold a part of it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from mindspore import Parameter, Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core.parameter import shard_of


def counted_once(parameters: Iterable[Parameter], tp_group: Group) -> list[Parameter]:
    """The parameters this rank contributes to a norm over the model.

    A tied copy is left out, and a parameter that every tensor parallel rank holds in full counts
    on the first of them only.

    Source: Megatron-LM ``get_main_grads_for_grad_norm`` (rules).
    """
    return [
        param
        for param in parameters
        if not shard_of(param).shared
        and (shard_of(param).partition_dim >= 0 or tp_group.rank == 0)
    ]


def l2_norm(tensors: Iterable[Tensor], model_parallel_group: Group) -> float:
    """sqrt of the sum of squares of all tensors of all ranks of the group."""
    total = math.fsum(ops.l2_norm_squared(tensor) for tensor in tensors)
    return math.sqrt(_sum(total, model_parallel_group))


def num_zeros(tensors: Iterable[Tensor], model_parallel_group: Group) -> int:
    """Number of elements that are exactly 0, over all ranks of the group."""
    count = sum(ops.count_zeros(tensor) for tensor in tensors)
    return int(_sum(count, model_parallel_group))


def clip_coefficient(norm: float, max_norm: float) -> float:
    """Factor on the gradients that brings their norm to ``max_norm``; 1 if it is smaller already.

    Source: Megatron-LM ``clip_grad_by_total_norm_fp32``: max_norm / (norm + 1e-6).
    """
    coefficient = max_norm / (norm + 1.0e-6)
    return coefficient if coefficient < 1.0 else 1.0


def _sum(value: float, group: Group) -> float:
    if group.size == 1:
        return float(value)
    total = memory.from_numpy(np.array([value], np.float32))
    comm.all_reduce(total, group=group)
    return float(memory.as_numpy(total)[0])
