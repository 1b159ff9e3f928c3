# SPDX-License-Identifier: Apache-2.0
"""Data parallelism: gradients accumulate in flat buffers whose buckets the ranks reduce."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms.backend.autograd import HookHandle
from mindspeed_ms.backend.base import Group, ReduceOp
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.distributed.bucket import Reduction
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
)
from mindspeed_ms.core.distributed.grad_buffer import GradPlan
from mindspeed_ms.core.distributed.param_and_grad_buffer import (
    BufferPlan,
    OptimizerShard,
    ParamAndGradBuffer,
)
from mindspeed_ms.core.parameter import (
    make_ready,
    named_buffers,
    named_parameters,
    num_elements,
    shard_of,
)
from mindspeed_ms.plan.param_layout import LayoutRules, Packing, is_kept_whole

NamedParameters = list[tuple[str, Parameter]]


class DistributedDataParallel:
    """A model whose gradients are averaged over data x context parallel ranks.

    Expert parameters are averaged over the expert data parallel group, with the scale of all data
    parallel ranks, because an expert sees the tokens of all of them.

    Args:
        config: reduction and sharding options.
        module: the model (or the chunk of one pipeline stage). Its parameters move into flat
            memory.
        data_parallel_group: default the data x context parallel group.
        disable_bucketing: one bucket per buffer, as for all but the first pipeline stage and chunk,
            where there is no later backward to hide the reductions behind.

    Parallelism: built by every rank of the data parallel group; ``finish_grad_sync`` and, with a
        distributed optimizer, the first use of parameters after a step are collective.
    """

    def __init__(
        self,
        config: DistributedDataParallelConfig,
        module: Cell,
        data_parallel_group: Group | None = None,
        *,
        disable_bucketing: bool = False,
    ) -> None:
        self.config = config
        self.module = module
        self.parameters = named_parameters(module)
        """Those that are trained: names and parameters, looked for once."""
        self.untrained = [param for _, param in named_buffers(module)]
        """The others."""
        self.bad_gradient: str | None = None
        """First parameter of the step whose local gradient was NaN or infinite."""
        self._group = data_parallel_group or parallel_state.get_data_parallel_group(
            with_context_parallel=True
        )
        self._has_own_group = data_parallel_group is not None
        self._is_bucketed = not disable_bucketing
        self.buffers = [
            self._make_buffer(parameters, is_expert, is_whole)
            for (_, is_expert, is_whole), parameters in self._grouped().items()
        ]
        self._hooks: list[HookHandle] = []
        if config.overlap_param_gather or config.zero_level == "z3":
            self._hook_cells()

    def _grouped(self) -> dict[tuple[str, bool, bool], NamedParameters]:
        """Parameters by type, by whether they belong to an expert, by whether they stay whole."""
        groups: dict[tuple[str, bool, bool], NamedParameters] = {}
        for name, param in self.parameters:
            shard = shard_of(param)
            is_whole = is_kept_whole(
                self.config.zero_level,
                dims=param.ndim,
                partition_dim=shard.partition_dim,
                is_expert=shard.is_expert,
            )
            key = (str(param.dtype), shard.is_expert, is_whole)
            groups.setdefault(key, []).append((name, param))
        return groups

    def _make_buffer(
        self, parameters: NamedParameters, is_expert: bool, is_whole: bool
    ) -> ParamAndGradBuffer:
        config = self.config
        reduction = self._reduction(is_expert)
        dtype = mstype.float32 if config.grad_reduce_in_fp32 else parameters[0][1].dtype
        own_bucket = {
            name for name, param in parameters if reduction.is_sharded and shard_of(param).is_tied
        }
        return ParamAndGradBuffer(
            parameters,
            BufferPlan(
                rules=self._rules(parameters, reduction, dtype, is_whole),
                own_bucket=own_bucket,
                grad_dtype=dtype,
                grads=GradPlan(
                    reduction=reduction,
                    overlap=config.overlap_grad_reduce,
                    report=self._report_bad_gradient,
                ),
                is_expert=is_expert,
                overlap_param_gather=config.overlap_param_gather,
                shards_gradients=config.shards_gradients,
                shards_params=not is_whole,
            ),
        )

    def _reduction(self, is_expert: bool) -> Reduction:
        config, group, replicas = self.config, self._group, None
        if is_expert:
            group = parallel_state.get_expert_data_parallel_group()
        elif config.is_sharded and not self._has_own_group:
            group = parallel_state.get_distributed_optimizer_group()
            replicas = parallel_state.get_distributed_optimizer_replica_group()
            replicas = replicas if replicas.size > 1 else None
        scale = 1.0 / self._group.size
        if config.average_in_collective:
            averaged = group.size * (1 if replicas is None else replicas.size)
            scale *= averaged
        return Reduction(
            group=group,
            replicas=replicas,
            is_sharded=config.is_sharded,
            scale=scale,
            op=ReduceOp.AVG if config.average_in_collective else ReduceOp.SUM,
            check_finite=config.check_for_nan_in_grad,
        )

    def _rules(
        self,
        parameters: NamedParameters,
        reduction: Reduction,
        grad_dtype: mstype.Type,
        is_whole: bool,
    ) -> LayoutRules:
        config = self.config
        packing = Packing(
            ranks=self._group.size,
            shards=reduction.shards if reduction.is_sharded else None,
            shards_gradients=config.shards_gradients,
            is_bucketed=config.overlap_grad_reduce and self._is_bucketed,
            bucket_size=config.bucket_size,
            alignment_bytes=config.mem_align_bytes,
            high_bandwidth=config.pad_buckets_for_high_nccl_busbw,
        )
        largest = max(num_elements(param) for _, param in parameters)
        return packing.rules(largest, 4 if grad_dtype == mstype.float32 else 2, is_whole)

    def _hook_cells(self) -> None:
        """Complete parameters before a cell uses them: its own ones and those it is passed."""
        for _, cell in self.module.cells_and_names():
            own = [
                param
                for param in cell.parameters_dict(recurse=False).values()
                if getattr(param, "before_use", None) is not None
            ]
            if own or not list(cell.cells()):
                self._hooks.append(cell.register_forward_pre_hook(_ReadyHook(own)))

    def _report_bad_gradient(self, name: str) -> None:
        self.bad_gradient = self.bad_gradient or name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of the model."""
        return self.module(*args, **kwargs)

    def zero_grad_buffer(self) -> None:
        """Forget all gradients; at the start of every step."""
        self.bad_gradient = None
        for buffer in self.buffers:
            buffer.grads.zero()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Context of all micro-batches of a step but the last: gradients only accumulate."""
        self._set_sync(False)
        try:
            yield
        finally:
            self._set_sync(True)

    def _set_sync(self, enabled: bool) -> None:
        for buffer in self.buffers:
            buffer.grads.set_sync(enabled)

    def start_grad_sync(self, *unused: Any) -> None:
        """Start the reductions that have not been started (``grad_sync_func`` of a schedule)."""
        for buffer in self.buffers:
            buffer.grads.start()

    def finish_grad_sync(self) -> None:
        """Average all gradients over the ranks; after the last micro-batch of a step."""
        for buffer in self.buffers:
            buffer.grads.finish()

    def start_param_sync(self, *unused: Any) -> None:
        """Let the other ranks have the parameters this rank has updated."""
        for buffer in self.buffers:
            buffer.params.publish()

    def finish_param_sync(self) -> None:
        """Complete what ``start_param_sync`` has left to the next forward.

        Needed before parameters are read other than by a forward, for example to save them. With
        ZeRO-3 weights stay sharded: see ``gathered_parameters``.
        """
        for buffer in self.buffers:
            buffer.params.finish()

    def replicated_parameters(self) -> Iterator[tuple[Group, dict[str, Parameter]]]:
        """Parameters that every rank of a group holds whole, by group and type.

        Complete after ``finish_param_sync``; what ZeRO-3 shards is not among them.
        """
        for (_, is_expert, is_whole), parameters in self._grouped().items():
            if is_whole:
                group = parallel_state.get_expert_data_parallel_group()
                yield group if is_expert else self._group, dict(parameters)

    def gathered_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Name and parameter one by one, each whole while the caller holds it (collective)."""
        self.finish_param_sync()
        for name, param in self.parameters:
            make_ready(param)
            yield name, param

    def reduced_grads(self, name: str) -> list[Tensor]:
        """Parts of a parameter's reduced gradient that this rank owns, flat.

        Raises:
            KeyError: no trainable parameter has this name.
        """
        for buffer in self.buffers:
            if name in buffer:
                return buffer.reduced_grads(name)
        raise KeyError(f"no trainable parameter of the model is named {name}")

    @property
    def shards(self) -> list[OptimizerShard]:
        """What the optimizer of this rank updates."""
        return [shard for buffer in self.buffers for shard in buffer.shards]

    def num_bytes(self) -> dict[str, int]:
        """Memory of parameters and of gradients on this rank."""
        return {
            "parameters": sum(buffer.params.num_bytes for buffer in self.buffers),
            "gradients": sum(buffer.grads.num_bytes for buffer in self.buffers),
        }

    def detach(self) -> None:
        """Take buffers and hooks away from the parameters, which keep their memory."""
        for hook in self._hooks:
            hook.remove()
        for buffer in self.buffers:
            buffer.grads.detach()
        for _, param in self.parameters:
            param.before_use = None


class _ReadyHook:
    """Forward pre-hook of a cell."""

    def __init__(self, own: list[Parameter]) -> None:
        self._own = own

    def __call__(self, cell: Cell, inputs: tuple) -> None:
        for param in self._own:
            make_ready(param)
        for value in inputs:
            if isinstance(value, Parameter):
                make_ready(value)
