# SPDX-License-Identifier: Apache-2.0
"""One buffer of parameters and their gradients, and the shards of it that this rank updates."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import memory
from mindspeed_ms.core.distributed.bucket import Reduction
from mindspeed_ms.core.distributed.grad_buffer import GradBuffer, Gradients, GradPlan
from mindspeed_ms.core.distributed.param_buffer import ParamBuffer, ParamStore
from mindspeed_ms.core.distributed.sharded_grads import ShardedGradBuffer
from mindspeed_ms.core.distributed.sharded_params import ShardedParams
from mindspeed_ms.plan.param_layout import BucketSpan, LayoutRules, Piece, buffer_layout, pieces_in


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerShard:
    """What this rank updates of a buffer: equally long flat parameters and gradients.

    Between the pieces lies padding, whose values and gradients are 0.
    """

    params: Tensor
    """In the type of the model."""
    grads: Tensor
    """Means over the data parallel ranks, after the reduction."""
    pieces: tuple[tuple[Parameter, Piece], ...]
    """Parameters (or parts of them) in the shard, in order."""
    bucket: tuple[Parameter, ...]
    """Parameters in the bucket that the shard is a part of."""
    reduction: Reduction
    is_expert: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferPlan:
    """How one buffer is built."""

    rules: LayoutRules
    own_bucket: Collection[str]
    grad_dtype: mstype.Type
    grads: GradPlan
    is_expert: bool
    overlap_param_gather: bool
    shards_gradients: bool
    shards_params: bool


class ParamAndGradBuffer:
    """Parameters of one type that are reduced over the same ranks, and their gradients.

    Args:
        parameters: in the order of the model.
        plan: how they are packed, reduced and sharded.
    """

    def __init__(self, parameters: Sequence[tuple[str, Parameter]], plan: BufferPlan) -> None:
        self.plan = plan
        self.parameters = tuple(parameters)
        self._by_name = dict(parameters)
        self.layout = buffer_layout(
            [(name, tuple(param.shape)) for name, param in parameters], plan.rules, plan.own_bucket
        )
        self.params: ParamStore
        if plan.shards_params:
            self.params = ShardedParams(self.layout, self._by_name, plan.grads.reduction)
        else:
            self.params = ParamBuffer(
                self.layout, self._by_name, plan.grads.reduction, plan.overlap_param_gather
            )
        kind = ShardedGradBuffer if plan.shards_gradients else GradBuffer
        self.grads: Gradients = kind(self.layout, self._by_name, plan.grad_dtype, plan.grads)
        self.shards = tuple(self._make_shards())

    def _make_shards(self) -> list[OptimizerShard]:
        reduction = self.plan.grads.reduction
        if not reduction.is_sharded:  # every rank updates all: one piece of memory, not many
            slots = tuple(slot for span in self.layout.buckets for slot in span.slots)
            whole = BucketSpan(start=0, end=self.layout.size, slots=slots)
            return [self._shard(whole, (0, self.layout.size), self.params.flat, self.grads.flat)]
        return [
            self._shard(
                span,
                span.shard(reduction.shard_rank, reduction.shards),
                self.params.shard(index),
                self.grads.shard(index),
            )
            for index, span in enumerate(self.layout.buckets)
        ]

    def _shard(
        self, span: BucketSpan, bounds: tuple[int, int], params: Tensor, grads: Tensor
    ) -> OptimizerShard:
        pieces = pieces_in(span, *bounds)
        return OptimizerShard(
            params=params,
            grads=grads,
            pieces=tuple((self._by_name[piece.name], piece) for piece in pieces),
            bucket=tuple(self._by_name[slot.name] for slot in span.slots),
            reduction=self.plan.grads.reduction,
            is_expert=self.plan.is_expert,
        )

    def reduced_grads(self, name: str) -> list[Tensor]:
        """The parts of a parameter's reduced gradient that this rank owns; after the reduction.

        Equal on ranks whose layouts are equal, such as tensor parallel ones.
        """
        return [
            memory.view_of(shard.grads, piece.start, (piece.size,))
            for shard in self.shards
            for _, piece in shard.pieces
            if piece.name == name
        ]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name
