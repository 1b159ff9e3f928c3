"""The experts of one rank. Legend: M rows sorted by expert, h hidden, f width of an expert,
q expert tensor parallel ranks.
"""  # noqa: D205 - the legend belongs to the first paragraph

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore import ops as ms_ops
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.parameter import ShardSpec, create_parameter, grad_sink_of, make_ready
from mindspeed_ms.core.recompute import forgotten
from mindspeed_ms.core.tensor_parallel.random import skip_initialization, words_of_normal
from mindspeed_ms.core.tensor_parallel.utils import divide
from mindspeed_ms.legacy.model.initialization import normal, scaled_normal
from mindspeed_ms.legacy.model.mlp import ParallelMLP, get_activation, hidden_activation
from mindspeed_ms.plan.recompute_plan import MOE_ACTIVATION, NO_RECOMPUTE, LayerRecompute


@dataclass(frozen=True, slots=True)
class ExpertShapes:
    """Unsharded matrices of one expert."""

    hidden: int
    width: int
    is_gated: bool

    @classmethod
    def of(cls, config: TransformerConfig) -> ExpertShapes:
        """Those of a configuration."""
        width = config.moe_config.moe_ffn_hidden_size or config.ffn_hidden_size
        assert width is not None, "ffn_hidden_size is filled when the section is built"
        return cls(config.hidden_size, width, bool(config.gated_linear_unit))

    @property
    def fc1(self) -> tuple[int, int]:
        """[f or 2 f, h]."""
        return self.width * (2 if self.is_gated else 1), self.hidden

    @property
    def fc2(self) -> tuple[int, int]:
        """[h, f]."""
        return self.hidden, self.width


def local_experts(config: TransformerConfig) -> tuple[int, ...]:
    """Global numbers of the experts on this rank."""
    group = parallel_state.get_expert_model_parallel_group()
    count = divide(config.moe_config.num_experts, group.size, "num_experts")
    return tuple(range(group.rank * count, (group.rank + 1) * count))


def _in_drawing_order(config: TransformerConfig) -> Iterator[int]:
    """Numbers of the local experts, passing over the initial weights of the others.

    So an expert starts from the same weights whatever rank it is on.
    """
    shapes, local = ExpertShapes.of(config), local_experts(config)
    words = words_of_normal(shapes.fc1) + words_of_normal(shapes.fc2)
    skip_initialization(words * local[0])
    yield from local
    skip_initialization(words * (config.moe_config.num_experts - 1 - local[-1]))


class _SplitRows(autograd.Function):
    """[M, h] -> the rows of each expert; an expert without any gets one row of zeros.

    Its output is thrown away by ``_JoinRows``, so its weights get gradients that are zero instead
    of none, and become ready for reduction like those of the others.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
        x = memory.contiguous(x)
        ctx.counts, ctx.shape, ctx.dtype = counts, tuple(x.shape), x.dtype
        parts, start = [], 0
        for count in counts:
            part = x[start : start + count] if count else memory.zeros((1, x.shape[1]), x.dtype)
            parts.append(part.view(part.shape))
            start += count
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _stacked(grads, ctx.counts, ctx.shape, ctx.dtype), None


class _JoinRows(autograd.Function):
    """The inverse of ``_SplitRows``."""

    @staticmethod
    def forward(ctx: Any, counts: Sequence[int], *parts: Tensor) -> Tensor:
        ctx.counts = counts
        ctx.shapes = [tuple(part.shape) for part in parts]
        return _stacked(parts, counts, (sum(counts), parts[0].shape[1]), parts[0].dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = memory.contiguous(grad)
        grads, start = [], 0
        for count, shape in zip(ctx.counts, ctx.shapes, strict=True):
            grads.append(grad[start : start + count] if count else memory.zeros(shape, grad.dtype))
            start += count
        return (None, *grads)


def _stacked(
    parts: Sequence[Tensor], counts: Sequence[int], shape: tuple[int, int], dtype: Any
) -> Tensor:
    used = [memory.contiguous(part) for part, count in zip(parts, counts, strict=True) if count]
    if not used:
        return memory.zeros(shape, dtype)
    return used[0] if len(used) == 1 else ms_ops.cat(used, axis=0)


class _AddShareOfBias(autograd.Function):
    """Y_r + b / q: the parts of the q expert tensor parallel ranks sum to Y + b.

    Every rank holds all of b and sees the gradient of the whole sum, so db = sum dY on each.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Parameter, ranks: int) -> Tensor:
        ctx.dtype = bias.dtype
        share = autograd.cast(bias, y.dtype)
        return y + (share if ranks == 1 else share / ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, autograd.cast(ops.bias_grad(memory.contiguous(grad)), ctx.dtype), None


class LocalExperts(Cell):
    """Cells under the global numbers of their experts."""

    def __init__(self, experts: Sequence[tuple[int, Cell]]) -> None:
        super().__init__()
        for index, expert in experts:
            self.insert_child_to_cell(str(index), expert)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells())


class SequentialMLP(Cell):
    """Experts that compute one after the other, each a ``ParallelMLP``.

    Args:
        num_local_experts: experts on this rank.
        config: model configuration.
        submodules: must be None; the configuration names the parts.
        recompute: parts that are computed again in backward.

    Shapes:
        rows [M, h] and rows per expert -> [M, h]; with expert tensor parallelism partial sums.

    Raises:
        ValueError: another number of experts than the layout puts here, or submodules.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        submodules: None = None,
        *,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        _check_arguments(num_local_experts, config, submodules)
        width = ExpertShapes.of(config).width
        self.tensor_ranks = parallel_state.get_expert_tensor_parallel_world_size()
        self.local_experts = LocalExperts(
            [
                (
                    index,
                    ParallelMLP(config, is_expert=True, ffn_hidden_size=width, recompute=recompute),
                )
                for index in _in_drawing_order(config)
            ]
        )

    def construct(self, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        """[M, h] -> [M, h]."""
        parts = _SplitRows.apply(rows, counts)
        if isinstance(parts, Tensor):
            parts = (parts,)
        outputs = []
        for expert, part in zip(self.local_experts, parts, strict=True):
            output, bias = expert(part)
            if bias is not None:
                output = _AddShareOfBias.apply(output, bias, self.tensor_ranks)
            outputs.append(output)
        return _JoinRows.apply(counts, *outputs)


def _check_arguments(num_local_experts: int, config: TransformerConfig, submodules: object) -> None:
    if submodules is not None:
        raise ValueError("submodules must be None; the configuration names the parts of experts")
    count = len(local_experts(config))
    if num_local_experts != count:
        raise ValueError(
            f"num_local_experts is {num_local_experts}; {config.moe_config.num_experts} experts on "
            f"the expert parallel ranks make {count}: pass that"
        )


@dataclass(frozen=True, slots=True)
class _GroupPlan:
    """What the products of one call share."""

    counts: tuple[int, ...]
    fused: bool
    """Add weight gradients straight into their gradient sinks."""


class _GroupedLinear(autograd.Function):
    """y_e = x_e W_e^T for the rows of every expert in one call of ``ops``.

    Shapes: X [M, i] sorted by expert, W_e [o, i], Y [M, o]. Backward: dX_e = dY_e W_e,
    dW_e = dY_e^T X_e; the weights of an expert without rows get a gradient of zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: _GroupPlan, *weights: Parameter) -> Tensor:
        x = memory.contiguous(x)
        ctx.save_for_backward(x)
        ctx.plan, ctx.weights = plan, weights
        return ops.grouped_linear_forward(x, _ready(weights, x), plan.counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        plan, weights = ctx.plan, ctx.weights
        grad = memory.contiguous(grad)
        dx = ops.grouped_linear_dgrad(grad, _ready(weights, grad), plan.counts)
        sinks = [grad_sink_of(weight) if plan.fused else None for weight in weights]
        totals = [
            memory.zeros(weight.shape) if sink is None else sink.main_grad
            for weight, sink in zip(weights, sinks, strict=True)
        ]
        ops.grouped_linear_wgrad_accumulate(grad, x, totals, plan.counts)
        grads: list[Tensor | None] = []
        for weight, sink, total in zip(weights, sinks, totals, strict=True):
            if sink is not None:
                sink.mark_ready()
                grads.append(None)
            else:
                grads.append(autograd.cast(total, weight.dtype))
        return (dx, None, *grads)


def _ready(weights: Sequence[Parameter], like: Tensor) -> list[Tensor]:
    """The weights, complete and in the type of the rows."""
    for weight in weights:
        make_ready(weight)
    return [autograd.cast(weight, like.dtype) for weight in weights]


class GroupedLinear(Cell):
    """One matrix per expert, multiplied in one call; named ``weightN`` for expert N.

    Args:
        shape: unsharded matrix [o, i].
        partition_dim: dimension split over the expert tensor parallel ranks.
        stride: number of stacked matrices that are split one by one.
        config: model configuration.
    """

    def __init__(
        self, shape: tuple[int, int], partition_dim: int, stride: int, config: TransformerConfig
    ) -> None:
        super().__init__()
        group = parallel_state.get_expert_tensor_parallel_group()
        local = list(shape)
        local[partition_dim] = divide(shape[partition_dim], group.size, "expert ffn width")
        self._shape, self._dtype = tuple(local), config.params_dtype
        self._shard = ShardSpec(
            partition_dim=partition_dim,
            partition_stride=stride,
            partitions=group.size,
            partition_rank=group.rank,
            is_expert=True,
        )
        self._fused = config.parallel_config.gradient_accumulation_fusion
        self.weights: list[str] = []

    def add(self, index: int, init_method: Any) -> None:
        """Create the matrix of an expert from its unsharded initial values."""
        name = f"weight{index}"
        weight = create_parameter(
            self._shape, init_method, dtype=self._dtype, name=name, shard=self._shard
        )
        self.insert_param_to_cell(name, weight)
        self.weights.append(name)

    def construct(self, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        """[M, i] -> [M, o]."""
        weights = [getattr(self, name) for name in self.weights]
        return _GroupedLinear.apply(rows, _GroupPlan(counts, self._fused), *weights)


class GroupedMLP(Cell):
    """Experts whose products are grouped: two calls for all experts of the rank.

    Arguments and shapes as in ``SequentialMLP``; the numbers are the same. They have no biases.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        submodules: None = None,
        *,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        _check_arguments(num_local_experts, config, submodules)
        shapes = ExpertShapes.of(config)
        self.linear_fc1 = GroupedLinear(shapes.fc1, 0, 2 if shapes.is_gated else 1, config)
        self.linear_fc2 = GroupedLinear(shapes.fc2, 1, 1, config)
        for index in _in_drawing_order(config):
            self.linear_fc1.add(index, normal(config.init_method_std))
            self.linear_fc2.add(index, scaled_normal(config))
        self.activation = get_activation(hidden_activation(config))
        self.activates_again = MOE_ACTIVATION in recompute.modules
        self.compute_dtype = memory.dtype_of(config.compute_dtype)

    def construct(self, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        """[M, h] -> [M, h]."""
        rows = autograd.cast(rows, self.compute_dtype)
        inner = self.linear_fc1(rows, counts)  # [M, (2) f/q]
        activated = self.activation(inner, None)
        if not self.activates_again or not autograd.is_grad_enabled() or not np.any(counts):
            return self.linear_fc2(activated, counts)
        with forgotten(activated, self.activation, inner, None):
            return self.linear_fc2(activated, counts)
