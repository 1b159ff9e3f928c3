# SPDX-License-Identifier: Apache-2.0
"""Adapters as Cells. Legend: S tokens, i inputs, o outputs of this rank, r ranks of all adapters.

The matrices B of a layer are spread over its outputs, with zeros at outputs that no adapter
changes, and their A stand below each other. So a layer has two narrow products however many of
its regions are adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core.parameter import create_parameter, make_ready, shard_of, shard_spec_of
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.core.tensor_parallel.layers import (
    LinearPlan,
    column_parallel_linear,
    row_parallel_linear,
)
from mindspeed_ms.core.tensor_parallel.random import MODEL_PARALLEL_RNG, get_rng_tracker
from mindspeed_ms.models.adapter import MAGNITUDE, AdapterSpec
from mindspeed_ms.models.parameter import ParamSpec
from mindspeed_ms.models.part import LinearSpec


def _scaled(t: Tensor, factor: float) -> Tensor:
    """A multiple, in the type of ``t``; computed in fp32."""
    if factor == 1.0:
        return t
    exact = memory.contiguous(ops.cast(t, mstype.float32))
    result = memory.zeros(exact.shape)
    flat, values = result.view((-1,)), exact.view((-1,))
    ops.axpy_(flat, values, factor)
    return ops.cast(result, t.dtype)


Product = Callable[[Tensor, Sequence[Tensor]], Tensor]


class _Spread(autograd.Function):
    """Rows of B, times a factor, at their outputs; zeros elsewhere: [rows, r] -> [o, r]."""

    @staticmethod
    def forward(ctx: Any, weight: Parameter, places: Tensor, scale: float) -> Tensor:
        ctx.places, ctx.scale, ctx.shape, ctx.dtype = places, scale, weight.shape, weight.dtype
        return _scaled(ops.embedding(make_ready(weight), places), scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        total = memory.zeros(ctx.shape)
        ops.embedding_wgrad_accumulate(memory.contiguous(grad), ctx.places, total)
        ops.scale_(total, ctx.scale)
        return ops.cast(total, ctx.dtype), None, None


class _Stacked(autograd.Function):
    """Matrices [r_k, i] below each other: [r, i]."""

    @staticmethod
    def forward(ctx: Any, *weights: Parameter) -> Tensor:
        ctx.ranks = [weight.shape[0] for weight in weights]
        return memory.concatenated([make_ready(weight) for weight in weights])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        grad = memory.contiguous(grad)
        ends = np.cumsum([0, *ctx.ranks])
        return tuple(
            grad[int(first) : int(last)] for first, last in zip(ends[:-1], ends[1:], strict=True)
        )


class _AddShare(autograd.Function):
    """Y + D / q, where every one of q ranks adds the same D and all their sums are summed."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, added: Tensor, ranks: int) -> Tensor:
        if ranks == 1:
            return y + added
        return y + _scaled(added, 1.0 / ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, grad, None


class _ShareOfGradient(autograd.Function):
    """X, whose gradient is the same on q ranks that will be summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return x.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _scaled(grad, 1.0 / ctx.ranks), None


@dataclass(frozen=True, slots=True)
class AdapterPlans:
    """How the two products of a layer's adapters communicate."""

    down: LinearPlan
    up: LinearPlan
    split: str
    """What ranks split of the layer: ``column``, ``row`` or ``whole``."""

    shares: int = 1
    """Ranks whose results the caller sums (experts)."""

    splits_input: bool = False
    """Ranks hold different elements of the input."""


def adapter_plans(layer: LinearPlan, split: str, is_expert: bool) -> AdapterPlans:
    """Plans beside a layer's own.

    A narrow product is what travels: with sequence parallelism beside split outputs X A^T is
    gathered, not X again, and beside split inputs it is what is summed or scattered.
    """
    alone = LinearPlan(group=Group(ranks=(comm.get_rank(),), rank=0, name="this rank"))
    joint = replace(layer, gradient_accumulation_fusion=False, sums_over_group=True)
    plans = {"column": (alone, joint), "row": (joint, alone), "whole": (alone, alone)}
    down, up = plans[split]
    return AdapterPlans(
        down,
        up,
        split,
        layer.group.size if is_expert else 1,
        layer.sequence_parallel or (split == "row" and layer.group.size > 1),
    )


class Adapter(Cell):
    """A and B of one region, and its magnitudes if it has any.

    Args:
        spec: the adapter.
        linear: the layer it stands beside.
        plans: how its products communicate.
        group: ranks that split the layer.
        is_expert: the layer belongs to an expert.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        linear: LinearSpec,
        plans: AdapterPlans,
        group: Group,
        is_expert: bool,
        sequence_parallel: bool,
    ) -> None:
        super().__init__()
        self.spec = spec
        for one in spec.parameters(linear.inputs, linear.split, linear.dtype):
            name = one.name.rpartition(".")[2]
            held = _parameter(one, group, is_expert, sequence_parallel)
            setattr(self, name, held)
        of_matrix = (group.rank, group.size) if plans.split == "column" else (0, 1)
        up = shard_of(self.lora_B)
        of_rows = (up.partition_rank, up.partitions)
        places = spec.places(linear.outputs, linear.stride, of_matrix, of_rows)
        self.rows = np.array(places, np.int32)
        self.places = memory.from_numpy(self.rows)

    @property
    def magnitude(self) -> Parameter:
        """Lengths of the rows."""
        return getattr(self, MAGNITUDE)


def _parameter(
    spec: ParamSpec, group: Group, is_expert: bool, sequence_parallel: bool
) -> Parameter:
    if is_expert:
        spec = replace(spec, expert=0, partial_gradient="never")
    shard = shard_spec_of(spec, group, sequence_parallel)
    ranks = shard.partitions
    value = spec.init.value
    return create_parameter(
        spec.local_shape(ranks, ranks),
        lambda shape: np.full(tuple(shape), value, np.float32),
        dtype=spec.dtype,
        name=spec.name,
        shard=shard,
    )


class Adapters(Cell):
    """All adapters beside one linear layer, under the names of their regions.

    Args:
        linear: the layer; it has adapters.
        layer: the plan of the layer.
        group: ranks that split it.
        is_expert: it belongs to an expert.
        sequence_parallel: ranks of the tensor parallel group hold different tokens.
    """

    def __init__(
        self,
        linear: LinearSpec,
        layer: LinearPlan,
        group: Group,
        *,
        is_expert: bool = False,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.plans = adapter_plans(layer, linear.split, is_expert)
        self.group = group
        self.dropout_rate = linear.adapters[0].dropout
        for spec in linear.adapters:
            cell = Adapter(spec, linear, self.plans, group, is_expert, sequence_parallel)
            self.insert_child_to_cell(spec.region, cell)
        self.enabled = True
        self.kept: Tensor | None = None  # bits of the matrix while the adapters are merged into it

    @property
    def each(self) -> Sequence[Adapter]:
        """In the order of the description."""
        return list(self.cells())

    @property
    def has_magnitudes(self) -> bool:
        """Whether rows are scaled."""
        return self.each[0].spec.has_magnitude

    def stacked_down(self) -> Tensor:
        """A of all adapters: [r, i]."""
        return _Stacked.apply(*(one.lora_A for one in self.each))

    def spread_up(self) -> Tensor:
        """B of all adapters, scaled and spread: [o, r]."""
        spread = [_Spread.apply(one.lora_B, one.places, one.spec.scale) for one in self.each]
        return spread[0] if len(spread) == 1 else ops.join_columns(spread)

    def dropped(self, x: Tensor) -> Tensor:
        """X with some elements dropped, in training; one mask serves all adapters of the layer."""
        if self.dropout_rate == 0.0 or not self.training:
            return x
        if not self.plans.splits_input:
            return ops.dropout(x, self.dropout_rate, get_rng_tracker().current())
        with get_rng_tracker().fork(MODEL_PARALLEL_RNG) as generator:
            return ops.dropout(x, self.dropout_rate, generator)

    def construct(self, x: Tensor) -> Tensor:
        """The input of the layer -> what is added to its output."""
        x, down, up = self._entered(x), self.stacked_down(), self.spread_up()
        if self.plans.split == "row":
            narrow = row_parallel_linear(x, down, self.plans.down)
        else:
            narrow = column_parallel_linear(x, down, None, self.plans.down)
        return column_parallel_linear(narrow, up, None, self.plans.up)

    def grouped(
        self, x: Tensor, product: Product, down: Sequence[Tensor], up: Sequence[Tensor]
    ) -> Tensor:
        """The same for the rows of several experts, of which this is one.

        Args:
            x: rows [M, i] sorted by expert.
            product: (rows, a matrix for each expert) -> their products.
            down: A of each expert.
            up: B of each.
        """
        narrow = product(self._entered(x), down)
        if self.group.size > 1 and self.plans.split == "row":
            narrow = mappings.reduce_from_tensor_model_parallel_region(narrow, self.group)
        elif self.group.size > 1:
            narrow = mappings.copy_to_tensor_model_parallel_region(narrow, self.group)
        return product(narrow, up)

    def _entered(self, x: Tensor) -> Tensor:
        """The input as the first product takes it."""
        if self.plans.shares > 1 and self.plans.split == "column":
            x = _ShareOfGradient.apply(x, self.plans.shares)
        return self.dropped(x)

    def joined(self, y: Tensor, added: Tensor) -> Tensor:
        """The sum of a layer's output and what its adapters add."""
        return _AddShare.apply(y, added, self.plans.shares if self.plans.split == "row" else 1)

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """Y of the layer with what its adapters add for its input X."""
        return self.joined(y, self(x)) if self.enabled else y
