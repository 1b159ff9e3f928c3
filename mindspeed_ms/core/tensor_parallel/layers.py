# SPDX-License-Identifier: Apache-2.0
"""Linear layers and the embedding, split over the tensor parallel group.

Legend: s sequence, b batch, i inputs, o outputs, v vocabulary, h hidden, p ranks in the group.
All state of a call lives in its autograd context, so any number of micro-batches can be in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.common.initializer import Zero
from mindspore.nn import Cell

from mindspeed_ms import old_names, ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import ModelParallelConfig, TransformerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import (
    InitMethod,
    ShardSpec,
    create_parameter,
    grad_sink_of,
    make_ready,
)
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.core.tensor_parallel.index_range import require_range
from mindspeed_ms.core.tensor_parallel.utils import VocabUtility, divide, refuse_unsupported
from mindspeed_ms.plan.region import Stack


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearPlan:
    """How a split linear layer communicates."""

    group: Group
    """Tensor parallel group."""

    sequence_parallel: bool = False
    """Activations outside the layer hold 1/p of the sequence."""

    gradient_accumulation_fusion: bool = False
    """Accumulate the weight gradient straight into the main gradient buffer when there is one."""

    sums_over_group: bool = True
    """False when the caller sums over the group (experts): a column layer's input gradient, a row
    layer's output."""

    keeps_gathered_input: bool = False
    """Keep the gathered input of a sequence parallel layer for the weight gradient, p times the
    memory, instead of gathering it again."""

    trains_weight: bool = True
    """False: no gradient from this use. A detached tensor would not do: sharded weights move."""


def _weight_grad(grad: Tensor, x: Tensor, weight: Parameter, plan: LinearPlan) -> Tensor | None:
    """DW = dY^T X: accumulated into the gradient sink (result None), or returned."""
    if not (plan.trains_weight and autograd.requires_grad(weight)):
        return None
    sink = grad_sink_of(weight) if plan.gradient_accumulation_fusion else None
    if sink is None:
        return ops.linear_wgrad(grad, x)
    ops.linear_wgrad_accumulate(grad, x, sink.main_grad)
    sink.mark_ready()
    return None


class _ColumnLinear(autograd.Function):
    """Y_r = X W_r^T + b_r, W split by rows.

    Shapes per rank: X [s, b, i] (sequence parallel: [s/p, b, i]), W_r [o/p, i], Y_r [s, b, o/p].

    Forward gathers X along the sequence when it is sequence parallel. Backward: dX = sum over ranks
    of dY_r W_r (all-reduce, or reduce-scatter when sequence parallel), dW_r = dY_r^T X,
    db_r = sum dY_r. The reduction of dX travels while dW is computed, and the gather of X for dW
    travels while dX is computed; only the local part of X is kept between forward and backward
    (with ``keeps_gathered_input`` the whole).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Parameter, bias: Tensor | None, plan: LinearPlan
    ) -> Tensor:
        # Asked here, as below: nearly all lie as they should, and a call more is plumbing.
        x = x if x.is_contiguous() else memory.contiguous(x)
        values = make_ready(weight, x.dtype)
        ctx.weight, ctx.plan = weight, plan
        ctx.bias_dtype = None if bias is None else bias.dtype
        total = mappings.gathered_first_dim(x, plan.group) if plan.sequence_parallel else x
        ctx.save_for_backward(total if plan.keeps_gathered_input else x)
        if bias is not None:
            bias = ops.cast(bias, x.dtype)
        return ops.linear_forward(total, values, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        plan, group = ctx.plan, ctx.plan.group
        grad = grad if grad.is_contiguous() else memory.contiguous(grad)
        values = make_ready(ctx.weight, grad.dtype)
        parallel = group.size > 1
        total, gathering = x, None
        is_split = parallel and plan.sequence_parallel
        if is_split and not plan.keeps_gathered_input:
            total = memory.empty((x.shape[0] * group.size, *x.shape[1:]), x.dtype)
            gathering = comm.all_gather_into_tensor(total, x, group=group, async_op=True)
        dx = ops.linear_dgrad(grad, values)
        if gathering is not None:
            gathering.wait()
        reducing = None
        if is_split:
            rows = total.shape[0] // group.size
            whole, dx = dx, memory.empty((rows, *total.shape[1:]), total.dtype)
            reducing = comm.reduce_scatter_tensor(dx, whole, group=group, async_op=True)
        elif parallel and plan.sums_over_group:
            reducing = comm.all_reduce(dx, group=group, async_op=True)
        dw = _weight_grad(grad, total, ctx.weight, plan)
        db = None
        if ctx.bias_dtype is not None:
            db = ops.cast(ops.bias_grad(grad), ctx.bias_dtype)
        if reducing is not None:
            reducing.wait()
        return dx, dw, db, None


class _RowLinear(autograd.Function):
    """Y = sum over ranks of X_r W_r^T, W split by columns.

    Shapes per rank: X_r [s, b, i/p], W_r [o, i/p], Y [s, b, o] (sequence parallel: [s/p, b, o]).

    Forward all-reduces the partial products (reduce-scatters when sequence parallel). Backward:
    dX_r = dY W_r, dW_r = dY^T X_r, with dY gathered along the sequence when sequence parallel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Parameter, plan: LinearPlan) -> Tensor:
        x = x if x.is_contiguous() else memory.contiguous(x)
        ctx.save_for_backward(x)
        ctx.weight, ctx.plan = weight, plan
        y = ops.linear_forward(x, make_ready(weight, x.dtype), None)
        if plan.group.size == 1:
            return y
        if plan.sequence_parallel:
            return mappings.reduce_scattered_first_dim(y, plan.group)
        if plan.sums_over_group:
            comm.all_reduce(y, group=plan.group)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        plan = ctx.plan
        values = make_ready(ctx.weight, grad.dtype)
        grad = grad if grad.is_contiguous() else memory.contiguous(grad)
        if plan.sequence_parallel:
            grad = mappings.gathered_first_dim(grad, plan.group)
        dx = ops.linear_dgrad(grad, values)
        dw = _weight_grad(grad, x, ctx.weight, plan)
        return dx, dw, None


class _AddBias(autograd.Function):
    """Y + b over the last dimension; the gradient of b is summed in fp32 for every type."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor) -> Tensor:
        ctx.bias_dtype = bias.dtype
        return y + ops.cast(bias, y.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, ops.cast(ops.bias_grad(memory.contiguous(grad)), ctx.bias_dtype)


class _VocabParallelLookup(autograd.Function):
    """Rows of a table split by rows: E = sum over ranks of the rows each one holds.

    Shapes per rank: ids [s, b], W_r [v/p, h], E [s, b, h] (sequence parallel: [s/p, b, h]).
    """

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, weight: Parameter, plan: LinearPlan, vocab_start: int
    ) -> Tensor:
        make_ready(weight)
        ctx.ids, ctx.weight, ctx.plan, ctx.vocab_start = ids, weight, plan, vocab_start
        rows = ops.embedding(weight, ids, vocab_start)
        if plan.group.size == 1:
            return rows
        if plan.sequence_parallel:
            return mappings.reduce_scattered_first_dim(rows, plan.group)
        comm.all_reduce(rows, group=plan.group)
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, plan = ctx.weight, ctx.plan
        grad = grad if grad.is_contiguous() else memory.contiguous(grad)
        if plan.sequence_parallel:
            grad = mappings.gathered_first_dim(grad, plan.group)
        if not autograd.requires_grad(weight):
            return None, None, None, None
        sink = grad_sink_of(weight) if plan.gradient_accumulation_fusion else None
        dw = memory.zeros(weight.shape) if sink is None else sink.main_grad
        ops.embedding_wgrad_accumulate(grad, ctx.ids, dw, ctx.vocab_start)
        if sink is None:
            return None, ops.cast(dw, weight.dtype), None, None
        sink.mark_ready()
        return None, None, None, None


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """The sum over the last dimension, in the type of y. Shapes: [..., o], [o] -> [..., o]."""
    return _AddBias.apply(y, bias)


def column_parallel_linear(
    x: Tensor, weight: Parameter, bias: Tensor | None, plan: LinearPlan
) -> Tensor:
    """X [s(/p), b, i], W_r [o/p, i] -> [s, b, o/p]; see ``_ColumnLinear``."""
    return _ColumnLinear.apply(x, weight, bias, plan)


def row_parallel_linear(x: Tensor, weight: Parameter, plan: LinearPlan) -> Tensor:
    """X_r [s, b, i/p], W_r [o, i/p] -> [s(/p), b, o]; see ``_RowLinear``."""
    return _RowLinear.apply(x, weight, plan)


def parallel_config_of(config: ModelParallelConfig | TransformerConfig) -> ModelParallelConfig:
    """The parallel part of either config; layers accept both."""
    return config.parallel_config if isinstance(config, TransformerConfig) else config


def has_batch_first(config: ModelParallelConfig | TransformerConfig, plan: LinearPlan) -> bool:
    """Whether a script's own layer has the batch before a sequence that is split or gathered."""
    return plan.sequence_parallel and isinstance(config, TransformerConfig) and config.batch_first


def linear_plan(
    config: ModelParallelConfig | TransformerConfig,
    *,
    is_expert: bool = False,
    group: Group | None = None,
    sums_over_group: bool = True,
) -> LinearPlan:
    """Plan of a layer, from the config and the (default) tensor parallel group.

    Experts leave all sums over their group to the dispatcher, which combines them with the way of
    the tokens.
    """
    parallel = parallel_config_of(config)
    if group is None:
        group = (
            parallel_state.get_expert_tensor_parallel_group()
            if is_expert
            else parallel_state.get_tensor_model_parallel_group()
        )
    return LinearPlan(
        group=group,
        sequence_parallel=parallel.sequence_parallel and group.size > 1 and not is_expert,
        gradient_accumulation_fusion=parallel.gradient_accumulation_fusion,
        sums_over_group=sums_over_group and not is_expert,
    )


class ColumnParallelLinear(Cell):
    """Y = X W^T + b with W [output_size, input_size] split along its rows.

    Args:
        input_size: columns of W.
        output_size: rows of W over all ranks; each rank holds output_size / p.
        config: model or parallel configuration.
        init_method: values of the full W.
        bias: whether there is a b.
        gather_output: return the whole Y on every rank instead of the own part.
        stride: number of stacked matrices in W that are split one by one (2 for [gate; up]).
        skip_bias_add: return b beside Y instead of adding it, for fusion with what follows.
        skip_weight_param_allocation: hold no weight; it is passed at each call.
        is_expert: the layer belongs to an expert.
        disable_grad_reduce: leave the reduction of the input gradient to the caller.
        bias_init: values of the full b.
        param_init_dtype: type of the parameters, default float32.
        compute_dtype: type the input is cast to, default its own.
        transpose_b: W is stored [output, input]; False: [input, output].
        tp_group: group to split over, default the (expert) tensor parallel group.
        is_vocabulary: rows of W are tokens.

    Shapes:
        input [s, b, input_size] (sequence parallel: [s/p, b, input_size]);
        output [s, b, output_size/p] or, gathered, [s, b, output_size]. Batch first where the layer
        is a script's own, whose config has ``data_layout: BSH``.

    Raises:
        ValueError: output_size does not divide by the group; an unsupported argument value.

    Source: Megatron-LM ``ColumnParallelLinear`` (signature and behaviour).
    """

    def __init__(  # noqa: PLR0913 - Megatron's public signature
        self,
        input_size: int,
        output_size: int,
        *,
        config: ModelParallelConfig | TransformerConfig,
        init_method: InitMethod,
        bias: bool = True,
        gather_output: bool = False,
        stride: Stack = 1,
        keep_master_weight_for_test: bool = False,
        skip_bias_add: bool = False,
        skip_weight_param_allocation: bool = False,
        embedding_activation_buffer: list[Tensor] | None = None,
        grad_output_buffer: list[Tensor] | None = None,
        is_expert: bool = False,
        tp_comm_buffer_name: str | None = None,
        disable_grad_reduce: bool = False,
        bias_init: InitMethod = Zero(),  # noqa: B008 - stateless, part of the signature
        param_init_dtype: str | mstype.Type | None = None,
        compute_dtype: str | mstype.Type | None = None,
        transpose_b: bool = True,
        tp_group: Group | None = None,
        is_vocabulary: bool = False,
    ) -> None:
        super().__init__()
        refuse_unsupported(
            keep_master_weight_for_test=keep_master_weight_for_test,
            embedding_activation_buffer=embedding_activation_buffer,
            grad_output_buffer=grad_output_buffer,
            tp_comm_buffer_name=tp_comm_buffer_name,
        )
        self.plan = linear_plan(
            config,
            is_expert=is_expert,
            group=tp_group,
            sums_over_group=not disable_grad_reduce,
        )
        self.batch_first = tp_group is None and has_batch_first(config, self.plan)
        group = self.plan.group
        if gather_output and self.plan.sequence_parallel:
            raise ValueError(
                "gather_output is True with sequence_parallel; the output of a sequence parallel "
                "layer stays split: set gather_output=False"
            )
        self.input_size, self.output_size = input_size, output_size
        self.output_size_per_partition = divide(output_size, group.size, "output_size")
        self.gather_output, self.transpose_b = gather_output, transpose_b
        self.skip_bias_add = skip_bias_add
        self.compute_dtype = memory.dtype_of(compute_dtype)
        shard = ShardSpec(
            partition_dim=0,
            partition_stride=stride,
            partitions=group.size,
            partition_rank=group.rank,
            is_expert=is_expert,
            is_vocabulary=is_vocabulary,
        )
        shape = (self.output_size_per_partition, input_size)
        dtype = param_init_dtype or mstype.float32
        self.weight = self.bias = None
        if not skip_weight_param_allocation:
            self.weight = create_parameter(
                shape if transpose_b else shape[::-1],
                init_method,
                dtype=dtype,
                name="weight",
                shard=shard if transpose_b else replace(shard, partition_dim=1),
            )
        if bias:
            self.bias = create_parameter(
                (self.output_size_per_partition,), bias_init, dtype=dtype, name="bias", shard=shard
            )

    def construct(
        self, input_: Tensor, weight: Parameter | None = None
    ) -> tuple[Tensor, Parameter | None]:
        """(output, bias if it was not added)."""
        weight = self.weight if weight is None else weight
        if weight is None:
            raise RuntimeError("the layer was built without a weight; pass one to the call")
        weight = weight if self.transpose_b else _exchanged(weight)
        if self.compute_dtype is not None:
            input_ = ops.cast(input_, self.compute_dtype)
        if self.batch_first:
            input_ = mappings.exchanged(input_)
        added = None if self.skip_bias_add else self.bias
        output = _ColumnLinear.apply(input_, weight, added, self.plan)
        if self.batch_first:
            output = mappings.exchanged(output)
        if self.gather_output:
            output = mappings.gather_from_tensor_model_parallel_region(output, self.plan.group)
        return output, self.bias if self.skip_bias_add else None


class RowParallelLinear(Cell):
    """Y = X W^T + b with W [output_size, input_size] split along its columns.

    Args:
        input_size: columns of W over all ranks; each rank holds input_size / p.
        output_size: rows of W.
        config: model or parallel configuration.
        init_method: values of the full W.
        bias: whether there is a b (whole on every rank).
        input_is_parallel: the input holds only this rank's columns already.
        skip_bias_add: return b beside Y instead of adding it.
        stride: number of stacked matrices in W that are split one by one.
        is_expert: the layer belongs to an expert.
        bias_init: values of b.
        param_init_dtype: type of the parameters, default float32.
        compute_dtype: type the input is cast to, default its own.
        transpose_b: W is stored [output, input]; False: [input, output].
        tp_group: group to split over, default the (expert) tensor parallel group.

    Shapes:
        input [s, b, input_size/p]; output [s, b, output_size] (sequence parallel:
        [s/p, b, output_size]). Batch first where the layer is a script's own, whose config has
        ``data_layout: BSH``.

    Raises:
        ValueError: input_size does not divide by the group; an unsupported argument value.

    Source: Megatron-LM ``RowParallelLinear`` (signature and behaviour).
    """

    def __init__(  # noqa: PLR0913 - Megatron's public signature
        self,
        input_size: int,
        output_size: int,
        *,
        config: ModelParallelConfig | TransformerConfig,
        init_method: InitMethod,
        bias: bool,
        input_is_parallel: bool,
        skip_bias_add: bool = True,
        stride: int = 1,
        keep_master_weight_for_test: bool = False,
        is_expert: bool = False,
        tp_comm_buffer_name: str | None = None,
        bias_init: InitMethod = Zero(),  # noqa: B008 - stateless, part of the signature
        param_init_dtype: str | mstype.Type | None = None,
        compute_dtype: str | mstype.Type | None = None,
        transpose_b: bool = True,
        tp_group: Group | None = None,
    ) -> None:
        super().__init__()
        refuse_unsupported(
            keep_master_weight_for_test=keep_master_weight_for_test,
            tp_comm_buffer_name=tp_comm_buffer_name,
        )
        self.plan = linear_plan(config, is_expert=is_expert, group=tp_group)
        self.batch_first = tp_group is None and has_batch_first(config, self.plan)
        group = self.plan.group
        if self.plan.sequence_parallel and not input_is_parallel:
            raise ValueError(
                "input_is_parallel is False with sequence_parallel; a sequence parallel row "
                "layer takes the split output of a column layer: set input_is_parallel=True"
            )
        self.input_size, self.output_size = input_size, output_size
        self.input_size_per_partition = divide(input_size, group.size, "input_size")
        self.input_is_parallel = input_is_parallel
        self.skip_bias_add = skip_bias_add
        self.compute_dtype = memory.dtype_of(compute_dtype)
        dtype = param_init_dtype or mstype.float32
        shape = (output_size, self.input_size_per_partition)
        self.transpose_b = transpose_b
        self.weight = create_parameter(
            shape if transpose_b else shape[::-1],
            init_method,
            dtype=dtype,
            name="weight",
            shard=ShardSpec(
                partition_dim=1 if transpose_b else 0,
                partition_stride=stride,
                partitions=group.size,
                partition_rank=group.rank,
                is_expert=is_expert,
            ),
        )
        self.bias = None
        if bias:
            self.bias = create_parameter(
                (output_size,),
                bias_init,
                dtype=dtype,
                name="bias",
                shard=ShardSpec(partial_gradient=self.plan.sequence_parallel, is_expert=is_expert),
            )

    def construct(self, input_: Tensor) -> tuple[Tensor, Parameter | None]:
        """(output, bias if it was not added)."""
        if self.compute_dtype is not None:
            input_ = ops.cast(input_, self.compute_dtype)
        if not self.input_is_parallel:
            input_ = mappings.scatter_to_tensor_model_parallel_region(input_, self.plan.group)
        weight = self.weight if self.transpose_b else _exchanged(self.weight)
        if self.batch_first:
            input_ = mappings.exchanged(input_)
        output = _RowLinear.apply(input_, weight, self.plan)
        if self.batch_first:
            output = mappings.exchanged(output)
        if self.skip_bias_add or self.bias is None:
            return output, self.bias
        return add_bias(output, self.bias), None


class VocabParallelEmbedding(Cell):
    """Token embedding whose table is split along the vocabulary.

    Args:
        num_embeddings: padded vocabulary size over all ranks.
        embedding_dim: width of a row.
        init_method: values of the full table.
        reduce_scatter_embeddings: leave the result split along the sequence.
        config: model or parallel configuration.
        param_init_dtype: type of the table, default float32.
        tp_group: group to split over, default the tensor parallel group.

    Shapes:
        ids [b, s] -> [b, s, h]; with reduce_scatter_embeddings [s/p, b, h] or, as above,
        [b, s/p, h].

    Raises:
        ValueError: num_embeddings does not divide by the group.

    Source: Megatron-LM ``VocabParallelEmbedding`` (signature and behaviour).
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        init_method: InitMethod,
        reduce_scatter_embeddings: bool = False,
        config: ModelParallelConfig | TransformerConfig,
        param_init_dtype: str | mstype.Type | None = None,
        tp_group: Group | None = None,
    ) -> None:
        super().__init__()
        plan = linear_plan(config, group=tp_group)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.reduce_scatter_embeddings = reduce_scatter_embeddings
        self.plan = LinearPlan(
            group=plan.group,
            sequence_parallel=reduce_scatter_embeddings and plan.group.size > 1,
            gradient_accumulation_fusion=plan.gradient_accumulation_fusion,
        )
        self.batch_first = tp_group is None and has_batch_first(config, self.plan)
        group = plan.group
        self.vocab_start_index, self.vocab_end_index = (
            VocabUtility.vocab_range_from_global_vocab_size(num_embeddings, group.rank, group.size)
        )
        self.weight = create_parameter(
            (self.vocab_end_index - self.vocab_start_index, embedding_dim),
            init_method,
            dtype=param_init_dtype or mstype.float32,
            name="weight",
            shard=ShardSpec(
                partition_dim=0,
                partitions=group.size,
                partition_rank=group.rank,
                is_vocabulary=True,
            ),
        )

    def construct(self, input_: Tensor) -> Tensor:
        """Rows of the table for ids of any shape; an id that has none is a ValueError."""
        require_range(input_, self.num_embeddings, "token id")
        if self.reduce_scatter_embeddings:
            input_ = memory.transposed(input_)
        rows = _VocabParallelLookup.apply(input_, self.weight, self.plan, self.vocab_start_index)
        return mappings.exchanged(rows) if self.batch_first else rows


class _Exchanged(autograd.Function):
    """A weight stored [input, output] -> [output, input], whole if it is shared out."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return memory.permuted(make_ready(weight), (1, 0))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return memory.permuted(memory.contiguous(grad), (1, 0))


def _exchanged(weight: Parameter) -> Tensor:
    return _Exchanged.apply(weight)


__getattr__ = old_names.of(__name__)
