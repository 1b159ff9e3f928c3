# SPDX-License-Identifier: Apache-2.0
"""Where a tensor crosses the border of a tensor parallel region.

Each crossing has a forward and the adjoint backward. Legend: s sequence, b batch, h hidden,
p ranks in the group. ``group`` defaults to the tensor parallel group.

| crossing | forward | backward |
|---|---|---|
| copy to | identity | all-reduce |
| reduce from | all-reduce | identity |
| scatter to | keep own part of the last dim | all-gather last dim |
| gather from | all-gather last dim | keep own part of the last dim |
| columns from | all-gather last dim, keep some columns | reduce-scatter last dim, zeros elsewhere |
| scatter to sequence | keep own part of dim 0 | all-gather dim 0 |
| gather from sequence | all-gather dim 0 | reduce-scatter dim 0 (or keep own part) |
| reduce-scatter to sequence | reduce-scatter dim 0 | all-gather dim 0 |
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, ops

from mindspeed_ms import old_names
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.tensor_parallel.utils import divide

Runs = tuple[tuple[int, int], ...]
"""(first, end) of neighbouring columns."""


def all_reduced(tensor: Tensor, group: Group) -> Tensor:
    """Sum over the group, in a new tensor."""
    if group.size == 1:
        return tensor
    result = memory.empty(tensor.shape, tensor.dtype)
    memory.copy_(result, tensor)
    comm.all_reduce(result, group=group)
    return result


def gathered_first_dim(tensor: Tensor, group: Group) -> Tensor:
    """Parts of all ranks stacked along dim 0: [s/p, ...] -> [s, ...]."""
    if group.size == 1:
        return tensor
    result = memory.empty((tensor.shape[0] * group.size, *tensor.shape[1:]), tensor.dtype)
    comm.all_gather_into_tensor(result, tensor.contiguous(), group=group)
    return result


def reduce_scattered_first_dim(tensor: Tensor, group: Group) -> Tensor:
    """Own part along dim 0 of the sum over the group: [s, ...] -> [s/p, ...]."""
    if group.size == 1:
        return tensor
    rows = divide(tensor.shape[0], group.size, "first dimension of a sequence parallel tensor")
    result = memory.empty((rows, *tensor.shape[1:]), tensor.dtype)
    comm.reduce_scatter_tensor(result, tensor.contiguous(), group=group)
    return result


def split_first_dim(tensor: Tensor, group: Group) -> Tensor:
    """Own part along dim 0."""
    if group.size == 1:
        return tensor
    rows = divide(tensor.shape[0], group.size, "first dimension of a sequence parallel tensor")
    return memory.contiguous(tensor[group.rank * rows : (group.rank + 1) * rows])


def split_last_dim(tensor: Tensor, group: Group) -> Tensor:
    """Own part along the last dim."""
    if group.size == 1:
        return tensor
    width = divide(tensor.shape[-1], group.size, "last dimension of a tensor parallel tensor")
    return memory.contiguous(tensor[..., group.rank * width : (group.rank + 1) * width])


def gathered_last_dim(tensor: Tensor, group: Group) -> Tensor:
    """Parts of all ranks joined along the last dim."""
    if group.size == 1:
        return tensor
    parts = gathered_first_dim(tensor.contiguous().view((1, *tensor.shape)), group)
    return ops.cat([parts[rank] for rank in range(group.size)], axis=-1)


def reduce_scattered_last_dim(tensor: Tensor, group: Group) -> Tensor:
    """Own part along the last dim of the sum over the group."""
    if group.size == 1:
        return tensor
    width = divide(tensor.shape[-1], group.size, "last dimension of a tensor parallel tensor")
    parts = tensor.reshape((*tensor.shape[:-1], group.size, width)).moveaxis(-2, 0)
    return reduce_scattered_first_dim(parts, group).reshape((*tensor.shape[:-1], width))


class _CopyToRegion(autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return tensor.view(tensor.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduced(grad, ctx.group), None


class _ReduceFromRegion(autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        return all_reduced(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ScatterToRegion(autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return split_last_dim(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gathered_last_dim(grad, ctx.group), None


class _GatherFromRegion(autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return gathered_last_dim(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return split_last_dim(grad, ctx.group), None


class _ColumnsFromRegion(autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, runs: Runs, group: Group) -> Tensor:
        ctx.group, ctx.runs = group, runs
        whole = gathered_last_dim(tensor, group)
        ctx.width = whole.shape[-1]
        return ops.cat([whole[..., first:end] for first, end in runs], axis=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        parts, at, taken = [], 0, 0
        for first, end in (*ctx.runs, (ctx.width, ctx.width)):
            parts.append(memory.zeros((*grad.shape[:-1], first - at), grad.dtype))
            parts.append(grad[..., taken : taken + end - first])
            at, taken = end, taken + end - first
        whole = ops.cat([part for part in parts if part.shape[-1]], axis=-1)
        return reduce_scattered_last_dim(whole, ctx.group), None, None


class _ScatterToSequence(autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return split_first_dim(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gathered_first_dim(grad, ctx.group), None


class _GatherFromSequence(autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, group: Group, into_tensor_parallel_region: bool
    ) -> Tensor:
        ctx.group = group
        ctx.reduce = into_tensor_parallel_region
        return gathered_first_dim(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        adjoint = reduce_scattered_first_dim if ctx.reduce else split_first_dim
        return adjoint(grad, ctx.group), None, None


class _ReduceScatterToSequence(autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return reduce_scattered_first_dim(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gathered_first_dim(grad, ctx.group), None


def _group(group: Group | None) -> Group:
    return group or parallel_state.get_tensor_model_parallel_group()


def copy_to_tensor_model_parallel_region(tensor: Tensor, group: Group | None = None) -> Tensor:
    """Enter a region where every rank uses the whole tensor."""
    group = _group(group)
    return tensor if group.size == 1 else _CopyToRegion.apply(tensor, group)


def reduce_from_tensor_model_parallel_region(tensor: Tensor, group: Group | None = None) -> Tensor:
    """Leave a region whose ranks hold partial sums."""
    group = _group(group)
    return tensor if group.size == 1 else _ReduceFromRegion.apply(tensor, group)


def scatter_to_tensor_model_parallel_region(tensor: Tensor, group: Group | None = None) -> Tensor:
    """[..., h] -> [..., h/p]."""
    group = _group(group)
    return tensor if group.size == 1 else _ScatterToRegion.apply(tensor, group)


def gather_from_tensor_model_parallel_region(tensor: Tensor, group: Group | None = None) -> Tensor:
    """[..., h/p] -> [..., h]."""
    group = _group(group)
    return tensor if group.size == 1 else _GatherFromRegion.apply(tensor, group)


def columns_from_tensor_parallel_region(
    tensor: Tensor, runs: Runs, group: Group | None = None
) -> Tensor:
    """[..., h/p] -> some of the h columns of all ranks, which may overlap with other ranks'.

    Args:
        tensor: this rank's columns.
        runs: (first, end) of those that are taken, ascending.
        group: default the tensor parallel group.
    """
    return _ColumnsFromRegion.apply(tensor, runs, _group(group))


def scatter_to_sequence_parallel_region(tensor: Tensor, group: Group | None = None) -> Tensor:
    """[s, b, h] -> [s/p, b, h]."""
    group = _group(group)
    return tensor if group.size == 1 else _ScatterToSequence.apply(tensor, group)


def gather_from_sequence_parallel_region(
    tensor: Tensor, tensor_parallel_output_grad: bool = True, group: Group | None = None
) -> Tensor:
    """[s/p, b, h] -> [s, b, h].

    ``tensor_parallel_output_grad`` says that each rank's gradient is a partial sum, which is so
    when a tensor parallel layer follows.
    """
    group = _group(group)
    if group.size == 1:
        return tensor
    return _GatherFromSequence.apply(tensor, group, tensor_parallel_output_grad)


def reduce_scatter_to_sequence_parallel_region(
    tensor: Tensor, group: Group | None = None
) -> Tensor:
    """Partial sums [s, b, h] -> own part of the sum [s/p, b, h]."""
    group = _group(group)
    return tensor if group.size == 1 else _ReduceScatterToSequence.apply(tensor, group)


def exchanged(states: Tensor) -> Tensor:
    """[b, s, h] -> [s, b, h] and back, where a script works with the batch first."""
    return states.swapaxes(0, 1).contiguous()


__getattr__ = old_names.of(__name__)
