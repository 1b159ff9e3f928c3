"""Data parallelism: gradients accumulate in one flat fp32 buffer that is reduced over the ranks."""

from __future__ import annotations

from typing import Any

from mindspore import Parameter
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group, ReduceOp
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
)
from mindspeed_ms.core.distributed.param_layout import flat_layout
from mindspeed_ms.core.parameter import GradSink, grad_sink_of, named_parameters, shard_of


class GradBuffer:
    """Flat fp32 gradients of some parameters, in reverse order: the order of the backward pass.

    Every parameter gets a ``GradSink`` on its part of the buffer. Gradients that the engine
    computes are added in a hook, which also clears them, so the engine never accumulates.
    """

    def __init__(
        self, parameters: list[tuple[str, Parameter]], group: Group, alignment: int = 1
    ) -> None:
        self.group = group
        slots, size = flat_layout(
            [(name, tuple(param.shape)) for name, param in reversed(parameters)], alignment
        )
        self.flat = memory.zeros((size,))
        by_name = dict(parameters)
        self._hooks = []
        for slot in slots:
            param = by_name[slot.name]
            main_grad = memory.view_of(self.flat, slot.start, slot.shape)
            param.grad_sink = GradSink(main_grad=main_grad, mark_ready=_nothing)
            param.main_grad = main_grad
            self._hooks.append(autograd.register_post_accumulate_hook(param, _accumulate))

    def zero(self) -> None:
        """Forget all gradients."""
        ops.scale_(self.flat, 0.0)

    def reduce(self, average_in_collective: bool) -> None:
        """Average over the group, in place."""
        if self.group.size == 1:
            return
        if average_in_collective:
            comm.all_reduce(self.flat, op=ReduceOp.AVG, group=self.group)
            return
        ops.scale_(self.flat, 1.0 / self.group.size)
        comm.all_reduce(self.flat, group=self.group)

    def detach(self) -> None:
        """Take the buffer away from its parameters."""
        for hook in self._hooks:
            hook.remove()


def _nothing() -> None:
    """Reduction starts after the last micro-batch, so a single gradient needs no notice."""


def _accumulate(param: Parameter) -> None:
    sink = grad_sink_of(param)
    grad = memory.contiguous(autograd.get_grad(param))
    ops.axpy_(sink.main_grad, grad)
    autograd.set_grad(param, None)
    sink.mark_ready()


class DistributedDataParallel:
    """A model whose gradients are averaged over data x context parallel ranks.

    Expert parameters are averaged over the expert data parallel group, with the scale of all data
    parallel ranks, because an expert sees the tokens of all of them.

    Args:
        config: reduction options.
        module: the model (or the chunk of one pipeline stage).
        data_parallel_group: default the data x context parallel group.
    """

    def __init__(
        self,
        config: DistributedDataParallelConfig,
        module: Cell,
        data_parallel_group: Group | None = None,
    ) -> None:
        self.config = config
        self.module = module
        group = data_parallel_group or parallel_state.get_data_parallel_group(
            with_context_parallel=True
        )
        parameters = named_parameters(module)
        experts = [item for item in parameters if shard_of(item[1]).is_expert]
        if experts:
            raise ValueError(
                f"parameter {experts[0][0]} belongs to an expert; mixture of experts is not "
                "supported yet: use num_experts=1"
            )
        self.buffers = [GradBuffer(parameters, group, config.mem_align_elements)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of the model."""
        return self.module(*args, **kwargs)

    def zero_grad_buffer(self) -> None:
        """Forget all gradients; at the start of every step."""
        for buffer in self.buffers:
            buffer.zero()

    def finish_grad_sync(self) -> None:
        """Average all gradients over the ranks; after the last micro-batch of a step."""
        for buffer in self.buffers:
            buffer.reduce(self.config.average_in_collective)
