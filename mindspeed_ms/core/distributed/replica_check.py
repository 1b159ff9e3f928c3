# SPDX-License-Identifier: Apache-2.0
"""Replicas of the weights that have diverged: a flipped bit, a kernel that rounds otherwise.

Data parallel ranks hold the same weights and update them with the same gradients, so nothing else
ever shows that one of them has left the others: the loss is a mean, and goes wrong slowly.

Source: Megatron-LM ``check_param_hashes_across_dp_replicas`` (behaviour).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from mindspore import Parameter

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.files.crc import crc32


def require_equal_replicas(models: Sequence[DistributedDataParallel], iteration: int) -> None:
    """Compare the weights of all data parallel replicas.

    Weights that ZeRO-3 keeps in shards have no replicas.

    Args:
        models: the chunks of this rank.
        iteration: where the run stands, for the message.

    Raises:
        RuntimeError: a replica differs, on all ranks; the message names its rank and the first
            parameter.

    Parallelism: collective over the world. Eight bytes per group are exchanged while all agree;
    each rank reads its weights once.
    """
    problem = ""
    for model in models:
        model.finish_param_sync()
        for group, parameters in model.replicated_parameters():
            found = _difference(group, parameters)  # all groups: others wait in them
            problem = problem or found
    problems = comm.all_gather_object(problem) if comm.get_world_size() > 1 else [problem]
    found = next((text for text in problems if text), "")
    if found:
        raise RuntimeError(
            f"after iteration {iteration} {found}; weights were damaged in memory, or kernels of "
            "the ranks differ: resume from a checkpoint that was saved before"
        )


def _difference(group: Group, parameters: dict[str, Parameter]) -> str:
    """The first difference within a group, in words; of two replicas the second is named."""
    if group.size == 1 or not parameters:
        return ""
    sums = {name: _checksum(param) for name, param in parameters.items()}
    whole = crc32(repr(sums).encode())
    if len(set(comm.all_gather_object(whole, group))) == 1:
        return ""
    everyones = comm.all_gather_object(sums, group)
    for name in sums:
        found = [one.get(name) for one in everyones]
        usual = Counter(found).most_common(1)[0][0]
        others = [rank for rank, one in zip(group.ranks, found, strict=True) if one != usual]
        if others:
            agreed = [rank for rank in group.ranks if rank not in others]
            return f"rank {others[0]} holds another value of {name} than ranks {agreed}"
    return f"the ranks {list(group.ranks)} hold other parameters than each other"


def _checksum(param: Parameter) -> int:
    return crc32(memory.as_numpy(memory.contiguous(param)).reshape(-1).view(np.uint8))
