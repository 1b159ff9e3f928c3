"""Gradients that are not numbers: which rank made them first, and in which parameter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import ReduceOp
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel


def refuse_bad_gradients(models: Sequence[DistributedDataParallel], iteration: int) -> None:
    """Stop every rank, with the same message, when any rank had a bad gradient.

    Args:
        models: the chunks, after ``finish_grad_sync``, with ``check_for_nan_in_grad``.
        iteration: number of the step, from 1.

    Raises:
        RuntimeError: names the ranks and for each the first parameter in the order of its backward.

    Parallelism: collective over the world; one small reduction while all is well.
    """
    mine = next((model.bad_gradient for model in models if model.bad_gradient), None)
    flag = memory.from_numpy(np.array([mine is not None], np.float32))
    if comm.get_world_size() > 1:
        comm.all_reduce(flag, op=ReduceOp.MAX)
    if memory.as_numpy(flag)[0] == 0.0:
        return
    found = comm.all_gather_object(mine)
    text = "; ".join(f"rank {rank}: {name}" for rank, name in enumerate(found) if name is not None)
    raise RuntimeError(
        f"iteration {iteration}: a gradient is NaN or infinite before the reduction over data "
        f"parallel ranks, first in {text}; lower the learning rate, check the data, or pass "
        "--no-check-for-nan-in-loss-and-grad to go on"
    )
