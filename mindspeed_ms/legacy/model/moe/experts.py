# SPDX-License-Identifier: Apache-2.0
"""The experts of one rank. Legend: M rows sorted by expert, h hidden, f width of an expert,
q expert tensor parallel ranks.
"""  # noqa: D205 - the legend belongs to the first paragraph

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mindspore import Parameter, Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.parameter import grad_sink_of, make_ready
from mindspeed_ms.core.peft.adapter import Adapters
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.recompute import forgotten
from mindspeed_ms.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    LinearPlan,
    RowParallelLinear,
)
from mindspeed_ms.core.tensor_parallel.random import skip_initialization
from mindspeed_ms.core.tensor_parallel.utils import divide
from mindspeed_ms.legacy.model.from_spec import parameter
from mindspeed_ms.legacy.model.mlp import Activation, ParallelMLP, activation_between
from mindspeed_ms.models.feed_forward import MLPSpec, MoESpec
from mindspeed_ms.models.gpt import moe_spec
from mindspeed_ms.models.part import LinearSpec
from mindspeed_ms.plan.recompute_plan import MOE_ACTIVATION, NO_RECOMPUTE, LayerRecompute


def local_experts(num_experts: int, group: Group) -> tuple[int, ...]:
    """Global numbers of the experts on this rank.

    Args:
        num_experts: of a layer.
        group: ranks that share them out.
    """
    count = divide(num_experts, group.size, "num_experts")
    return tuple(range(group.rank * count, (group.rank + 1) * count))


def _in_drawing_order(spec: MoESpec, local: Sequence[int]) -> Iterator[int]:
    """Numbers of the local experts, passing over the initial weights of the others.

    So an expert starts from the same weights whatever rank it is on.
    """
    words = sum(parameter.words for parameter in spec.expert.parameters())
    skip_initialization(words * local[0])
    yield from local
    skip_initialization(words * (spec.num_experts - 1 - local[-1]))


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
    return used[0] if len(used) == 1 else memory.concatenated(used)


class _AddShareOfBias(autograd.Function):
    """Y_r + b / q: the parts of the q expert tensor parallel ranks sum to Y + b.

    Every rank holds all of b and sees the gradient of the whole sum, so db = sum dY on each.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Parameter, ranks: int) -> Tensor:
        ctx.dtype = bias.dtype
        share = ops.cast(bias, y.dtype)
        return y + (share if ranks == 1 else share / ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, ops.cast(ops.bias_grad(memory.contiguous(grad)), ctx.dtype), None


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

    Experts of matrices alone are not called one by one, unless a hook waits for such a call.

    Args:
        num_local_experts: experts on this rank.
        config: model configuration.
        submodules: must be None; the configuration names the parts.
        spec: the mixture they belong to, default the configuration's.
        groups: of this rank, default the current ones.
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
        spec: MoESpec | None = None,
        groups: ProcessGroups | None = None,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        spec, groups = spec or moe_spec(config), groups or ProcessGroups.current()
        local = _checked_experts(num_local_experts, spec, groups, submodules)
        self.tensor_ranks = groups.expert_tensor.size
        self.local_experts = LocalExperts(
            [
                (
                    index,
                    ParallelMLP(
                        config,
                        is_expert=True,
                        spec=spec.expert,
                        groups=groups,
                        recompute=recompute,
                    ),
                )
                for index in _in_drawing_order(spec, local)
            ]
        )
        parts = [
            part for expert in self.local_experts for part in (expert.mapping, expert.projection)
        ]
        # Neither biases, adapters nor partial sums: the products of all experts are one call,
        # with the numbers of theirs.
        self.has_matrices_alone = self.tensor_ranks == 1 and all(
            type(part) in (ColumnParallelLinear, RowParallelLinear) and part.bias is None
            for part in parts
        )

    def construct(self, rows: Tensor, counts: tuple[int, ...] | Tensor) -> Any:  # noqa: ANN401
        """[M, h] -> [M, h]; with counts of a tensor, as scripts have them, (that, no bias)."""
        if isinstance(counts, Tensor):
            return self._sum_of_experts(rows, tuple(counts.asnumpy().tolist())), None
        return self._sum_of_experts(rows, counts)

    def _sum_of_experts(self, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        experts = list(self.local_experts)
        # On an NPU the flag of the user chooses between the kernels.
        is_one_call = self.has_matrices_alone and ops.selected() != "ascend"
        if is_one_call and not any(map(_is_watched, experts)):
            mapping: ColumnParallelLinear = experts[0].mapping
            plan = _GroupPlan(counts, mapping.plan.gradient_accumulation_fusion)
            rows = rows if mapping.compute_dtype is None else ops.cast(rows, mapping.compute_dtype)
            return _through_experts(
                rows, plan, experts, experts[0].activation, experts[0].activates_again
            )
        parts = _SplitRows.apply(rows, counts)
        if isinstance(parts, Tensor):
            parts = (parts,)
        outputs = []
        for expert, part in zip(experts, parts, strict=True):
            output, bias = expert(part)
            if bias is not None:
                output = _AddShareOfBias.apply(output, bias, self.tensor_ranks)
            outputs.append(output)
        return _JoinRows.apply(counts, *outputs)


def _is_watched(expert: ParallelMLP) -> bool:
    """Whether somebody wants to see the expert, or a matrix of it, being called."""
    return any(map(autograd.has_hooks, (expert, expert.mapping, expert.projection)))


def _checked_experts(
    num_local_experts: int, spec: MoESpec, groups: ProcessGroups, submodules: object
) -> tuple[int, ...]:
    """Global numbers of the experts on this rank, if the arguments fit them."""
    if submodules is not None:
        raise ValueError("submodules must be None; the configuration names the parts of experts")
    local = local_experts(spec.num_experts, groups.expert)
    if num_local_experts != len(local):
        raise ValueError(
            f"num_local_experts is {num_local_experts}; {spec.num_experts} experts on the expert "
            f"parallel ranks make {len(local)}: pass that"
        )
    return local


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
        if not any(autograd.requires_grad(weight) for weight in weights):
            return (dx, None, *(None for _ in weights))
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
                grads.append(ops.cast(total, weight.dtype))
        return (dx, None, *grads)


def _ready(weights: Sequence[Parameter], like: Tensor) -> list[Tensor]:
    """The weights, complete and in the type of the rows."""
    return [make_ready(weight, like.dtype) for weight in weights]


class _Matrix(Cell):
    """A weight that a grouped product uses."""

    def __init__(self, spec: LinearSpec, groups: ProcessGroups) -> None:
        super().__init__()
        weight = next(iter(spec.parameters()))
        group = groups.expert_tensor
        self.weight = parameter(replace(weight, expert=0), group=group)
        self.adapters = None
        if spec.adapters:
            self.adapters = Adapters(spec, LinearPlan(group=group), group, is_expert=True)


def _product(x: Tensor, plan: _GroupPlan, matrices: Sequence[Cell]) -> Tensor:
    """Rows times the matrices of their experts, adapters included."""
    weights = [matrix.weight for matrix in matrices]
    adapters = [
        matrix.adapters
        for matrix in matrices
        if isinstance(matrix, _Matrix) and matrix.adapters is not None
    ]
    if not adapters or not adapters[0].enabled:
        return _GroupedLinear.apply(x, plan, *weights)
    apart = replace(plan, fused=False)

    def product(rows: Tensor, factors: Sequence[Tensor]) -> Tensor:
        return _GroupedLinear.apply(rows, apart, *factors)

    mine, adapted = ops.branch(x)
    added = adapters[0].grouped(
        adapted,
        product,
        [one.stacked_down() for one in adapters],
        [one.spread_up() for one in adapters],
    )
    return adapters[0].joined(_GroupedLinear.apply(mine, plan, *weights), added)


def _through_experts(
    rows: Tensor,
    plan: _GroupPlan,
    experts: Sequence[Cell],
    activation: Activation,
    activates_again: bool,
) -> Tensor:
    """Rows through both matrices of their experts, each with its ``mapping`` and ``projection``."""
    inner = _product(rows, plan, [expert.mapping for expert in experts])  # [M, (2) f/q]
    activated = activation(inner, None)
    second = [expert.projection for expert in experts]
    if not activates_again or not autograd.is_grad_enabled() or not any(plan.counts):
        return _product(activated, plan, second)
    with forgotten(activated, activation, inner, None):
        return _product(activated, plan, second)


class _ExpertMatrices(Cell):
    """Both matrices of an expert, under the names they have in a block of its own."""

    def __init__(self, spec: MLPSpec, groups: ProcessGroups) -> None:
        super().__init__()
        self.mapping = _Matrix(spec.mapping, groups)
        self.projection = _Matrix(spec.projection, groups)


class GroupedMLP(Cell):
    """Experts whose products are grouped: two calls for all experts of the rank.

    Arguments and shapes as in ``SequentialMLP``; the numbers are the same, and so are the names of
    the weights. They have no biases.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        submodules: None = None,
        *,
        spec: MoESpec | None = None,
        groups: ProcessGroups | None = None,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        spec, groups = spec or moe_spec(config), groups or ProcessGroups.current()
        local = _checked_experts(num_local_experts, spec, groups, submodules)
        self.local_experts = LocalExperts(
            [
                (index, _ExpertMatrices(spec.expert, groups))
                for index in _in_drawing_order(spec, local)
            ]
        )
        self.fused = config.parallel_config.gradient_accumulation_fusion
        self.activation = activation_between(spec.expert)
        self.activates_again = MOE_ACTIVATION in recompute.modules
        self.compute_dtype = memory.dtype_of(config.compute_dtype)

    def construct(self, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        """[M, h] -> [M, h]."""
        return _through_experts(
            ops.cast(rows, self.compute_dtype),
            _GroupPlan(counts, self.fused),
            list(self.local_experts),
            self.activation,
            self.activates_again,
        )
