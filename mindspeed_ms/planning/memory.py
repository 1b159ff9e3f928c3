# SPDX-License-Identifier: Apache-2.0
"""Bytes one rank holds: weights, gradients, optimizer state, activations.

The first three follow the flat buffers of ``core/distributed`` element by element, padding
included. Activations are what the kernels of a layer keep for its backward, times the forwards of
the schedule whose backward is still to come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.dtypes import FLOAT32, dtype_bytes
from mindspeed_ms.models import ParamSpec
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.param_layout import BufferLayout, Packing, buffer_layout, is_kept_whole
from mindspeed_ms.planning.matrix_rules import matrix_operations, whole_bytes
from mindspeed_ms.planning.parameters import (
    LocalParameter,
    chunk_parameters,
    frozen_bytes,
    teacher_bytes,
)

WHOLE_WEIGHTS = 3
"""Weights in full at a time with z3: two in use or on their way, and the zeros of hidden ones."""


def scratch_buckets(overlaps: bool) -> int:
    """Gradients of whole buckets at a time where they are shared out: one more on its way."""
    return 2 if overlaps else 1


@dataclass(frozen=True, slots=True)
class StateBytes:
    """What a rank holds from its start to its end, in bytes."""

    parameters: int
    """Elements of weights, without padding."""
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.gradients + self.optimizer

    def __add__(self, other: StateBytes) -> StateBytes:
        """Sum, part by part."""
        return StateBytes(
            self.parameters + other.parameters,
            self.weights + other.weights,
            self.gradients + other.gradients,
            self.optimizer + other.optimizer,
        )

    def times(self, count: int) -> StateBytes:
        """The same several times, part by part."""
        parts = (self.parameters, self.weights, self.gradients, self.optimizer)
        return StateBytes(*(count * part for part in parts))


@dataclass(frozen=True, slots=True)
class ElementBytes:
    """What an element of a parameter takes where nothing is shared out."""

    weight: int
    gradient: int
    optimizer: int
    """Its states, and its fp32 copy where the weight is narrower."""


def element_bytes(one: ParamSpec, config: AllConfig) -> ElementBytes:
    """Bytes of an element of a parameter that is trained.

    Args:
        one: the parameter.
        config: says types of gradients and states.
    """
    optimizer, width = config.optimizer_config, dtype_bytes(one.dtype)
    names = optimizer.states_of(len(one.shape), one.is_vocabulary)
    types = optimizer.narrow_types
    states = (types.get(name, FLOAT32) for name in (*names, *(("main",) if width < 4 else ())))
    in_fp32 = config.training_config.accumulate_allreduce_grads_in_fp32
    return ElementBytes(width, 4 if in_fp32 else width, sum(map(dtype_bytes, states)))


@dataclass(frozen=True, slots=True)
class _Sharing:
    """How the data-parallel ranks share out one kind of parameter."""

    zero_level: str | None
    overlaps: bool
    """Gradients are reduced during the backward."""
    packing: Packing

    @property
    def shards(self) -> int:
        """Parts that a bucket is cut into."""
        return self.packing.shards or 1


def stage_state(config: AllConfig, world_size: int, stage: int) -> StateBytes:
    """Weights, gradients and optimizer state of a rank of one pipeline stage."""
    placement = layer_placement(config.model_config, config.parallel_config)
    is_last = stage == placement.num_stages - 1
    total = StateBytes(0, teacher_bytes(config) if is_last else 0, 0, 0)
    for chunk in range(placement.num_chunks):
        total += StateBytes(0, frozen_bytes(config, stage, chunk), 0, 0)
    for buffer in _stage_buffers(config, world_size, stage):
        total += _buffer_bytes(buffer, config)
    return total


def stage_matrices(config: AllConfig, world_size: int, stage: int) -> tuple[float, float]:
    """(bytes of states, operations of a step) of matrices that each of their owners has all of.

    Of the rank of a stage that has the most.
    """
    rule, kept, operations = config.optimizer_config, 0.0, 0.0
    if not rule.updates_matrices:
        return 0.0, 0.0
    for buffer in _stage_buffers(config, world_size, stage):
        kept += buffer.most_owned(lambda one: whole_bytes(rule, one.spec))
        operations += buffer.most_owned(lambda one: matrix_operations(rule, one.spec, one.shape))
    return kept, operations


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A flat buffer of a rank."""

    specs: list[LocalParameter]
    sharing: _Sharing
    element: ElementBytes
    """Of its weights and gradients, which are of one type; states differ between parameters."""
    layout: BufferLayout

    def most_owned(self, amount_of: Callable[[LocalParameter], float]) -> float:
        """The most of any rank, where each counts all of a matrix that it owns a part of."""
        amounts = {one.name: amount_of(one) for one in self.specs}
        if not any(amounts.values()):
            return 0.0
        held = [0.0] * self.sharing.shards
        for span in self.layout.buckets:
            part = span.size // self.sharing.shards
            for slot in span.slots:
                amount = amounts[slot.name]
                first, last = (slot.start - span.start) // part, (slot.end - 1 - span.start) // part
                for rank in range(first, last + 1) if amount else ():
                    held[rank] += amount
        return max(held)


def _stage_buffers(config: AllConfig, world_size: int, stage: int) -> Iterator[_Buffer]:
    """The buffers of a stage's rank."""
    placement = layer_placement(config.model_config, config.parallel_config)
    chunks = [chunk_parameters(config, stage, chunk) for chunk in range(placement.num_chunks)]
    count = sum(spec.size for specs in chunks for spec in specs)
    for chunk, specs in enumerate(chunks):
        for is_expert in (False, True):
            sharing = _sharing(config, world_size, stage, chunk, is_expert, count)
            mine = [spec for spec in specs if spec.is_expert == is_expert]
            for group in _sharing_a_buffer(mine, sharing):
                element = element_bytes(group[0].spec, config)
                yield _Buffer(group, sharing, element, _layout(group, sharing, element.gradient))


def _sharing(
    config: AllConfig, world_size: int, stage: int, chunk: int, is_expert: bool, count: int
) -> _Sharing:
    training, parallel = config.training_config, config.parallel_config
    ranks = parallel.data_parallel_size(world_size) * parallel.context_parallel_size
    if is_expert:
        shards = expert_data_parallel_size(config, world_size)
    else:
        shards = ranks // parallel.optimizer_instances(world_size)
    overlaps = training.overlaps_reduction(stage)
    packing = Packing(
        ranks=ranks,
        shards=shards if config.shards_optimizer else None,
        shards_gradients=parallel.shards_gradients,
        is_bucketed=overlaps and stage == 0 and chunk == 0,
        bucket_size=training.elements_of_bucket(count),
        alignment_bytes=training.mem_align_bytes,
        high_bandwidth=training.ddp_pad_buckets_for_high_nccl_busbw,
    )
    return _Sharing(parallel.zero_level, overlaps, packing)


def expert_data_parallel_size(config: AllConfig, world_size: int) -> int:
    """Ranks that hold copies of the same experts."""
    parallel = config.parallel_config
    tensor = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
    return world_size // (
        tensor * parallel.expert_model_parallel_size * parallel.pipeline_model_parallel_size
    )


def _sharing_a_buffer(specs: list[LocalParameter], sharing: _Sharing) -> list[list[LocalParameter]]:
    """Parameters that share a buffer: of one type, and kept whole or sharded alike."""
    groups: dict[tuple[str, bool], list[LocalParameter]] = {}
    for spec in specs:
        groups.setdefault((str(spec.dtype), _is_whole(spec, sharing)), []).append(spec)
    return list(groups.values())


def _is_whole(spec: LocalParameter, sharing: _Sharing) -> bool:
    return is_kept_whole(
        sharing.zero_level,
        dims=len(spec.shape),
        partition_dim=spec.spec.partition_dim,
        is_expert=spec.is_expert,
    )


def _buffer_bytes(buffer: _Buffer, config: AllConfig) -> StateBytes:
    specs, sharing, one, layout = buffer.specs, buffer.sharing, buffer.element, buffer.layout
    owned = layout.size // sharing.shards
    largest = max(span.size for span in layout.buckets)
    weights = layout.size * one.weight
    if not _is_whole(specs[0], sharing):
        weights = (owned + WHOLE_WEIGHTS * largest) * one.weight
    gradients = layout.size * one.gradient
    if sharing.packing.shards_gradients:
        scratch = scratch_buckets(sharing.overlaps and len(layout.buckets) > 1)
        gradients = (owned + scratch * largest) * one.gradient
    count = sum(spec.size for spec in specs)
    # Padding has no states of its own kind: it takes what an element does on average.
    states = sum(spec.size * element_bytes(spec.spec, config).optimizer for spec in specs)
    optimizer = math.ceil(owned * states / max(count, 1))
    rule = config.optimizer_config
    optimizer += round(buffer.most_owned(lambda spec: whole_bytes(rule, spec.spec)))
    return StateBytes(count, weights, gradients, optimizer)


def _layout(specs: list[LocalParameter], sharing: _Sharing, grad_width: int) -> BufferLayout:
    """The buffer ``DistributedDataParallel`` makes of these parameters."""
    largest = max(spec.size for spec in specs)
    rules = sharing.packing.rules(largest, grad_width, _is_whole(specs[0], sharing))
    is_shared_out = sharing.packing.shards is not None
    own_bucket = {spec.name for spec in specs if spec.is_tied and is_shared_out}
    return buffer_layout([(spec.name, spec.shape) for spec in specs], rules, own_bucket)
