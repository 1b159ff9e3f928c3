# SPDX-License-Identifier: Apache-2.0
"""What happens to gradients between the last backward and the optimizer."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.expert_bias import update_experts
from mindspeed_ms.core.parameter import shard_of
from mindspeed_ms.core.timers import timed
from mindspeed_ms.plan.param_layout import flat_layout


def finalize_model_grads(models: Sequence[DistributedDataParallel]) -> None:
    """Average over data parallel ranks, then complete the gradients that are partial sums.

    Also adjusts the biases that balance experts.

    Source: Megatron-LM ``finalize_model_grads`` (order of the reductions).
    """
    with timed("all-grads-sync", 1):
        for model in models:
            model.finish_grad_sync()
    with timed("layernorm-grads-all-reduce", 1):
        _sum_sequence_parallel_grads(models, parallel_state.get_tensor_model_parallel_group())
    with timed("embedding-grads-all-reduce", 1):
        _sum_tied_embedding_grads(models, parallel_state.get_embedding_group())
    update_experts([param for model in models for param in model.untrained])


def _sum_sequence_parallel_grads(models: Sequence[DistributedDataParallel], group: Group) -> None:
    """Sum the gradients of replicated parameters that saw only a part of the sequence.

    They are small and many, so they travel in one message. With a distributed optimizer only the
    parts that this rank owns are summed; tensor parallel ranks own the same parts.
    """
    if group.size == 1:
        return
    grads = [
        grad
        for model in models
        for name, param in model.parameters
        if shard_of(param).partial_gradient
        for grad in model.reduced_grads(name)
    ]
    if not grads:
        return
    slots, size = flat_layout([(str(i), tuple(grad.shape)) for i, grad in enumerate(grads)])
    packed = memory.empty((size,))
    views = [memory.view_of(packed, slot.start, slot.shape) for slot in slots]
    for view, grad in zip(views, grads, strict=True):
        ops.copy_cast_(view, grad)
    comm.all_reduce(packed, group=group)
    for view, grad in zip(views, grads, strict=True):
        ops.copy_cast_(grad, view)


def _sum_tied_embedding_grads(models: Sequence[DistributedDataParallel], group: Group) -> None:
    """Sum the gradients of the two copies of a tied embedding, on the first and the last stage.

    The middle stages have neither and take no part.
    """
    if group.rank < 0 or group.size == 1:
        return
    for model in models:
        for name, param in model.parameters:
            if shard_of(param).is_tied:
                for grad in model.reduced_grads(name):
                    comm.all_reduce(grad, group=group)
