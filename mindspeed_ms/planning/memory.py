# SPDX-License-Identifier: Apache-2.0
"""Bytes one rank holds: weights, gradients, optimizer state, activations.

The first three follow the flat buffers of ``core/distributed`` element by element, padding
included. Activations are what the kernels of a layer keep for its backward, times the forwards of
the schedule whose backward is still to come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.dtypes import FLOAT32, dtype_bytes
from mindspeed_ms.models import ParamSpec
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.param_layout import (
    PARAM_ALIGNMENT,
    BufferLayout,
    LayoutRules,
    buffer_layout,
    default_bucket_size,
    sharded_alignment,
)
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
    is_sharded: bool
    shards: int
    reducing_ranks: int
    """Ranks of the data × context parallel group, which sizes the default bucket."""
    overlap: bool
    bucket_size: int | None
    is_bucketed: bool
    alignment_bytes: int
    high_bandwidth: bool

    @property
    def shards_gradients(self) -> bool:
        return self.zero_level in ("z2", "z3")


def stage_state(config: AllConfig, world_size: int, stage: int) -> StateBytes:
    """Weights, gradients and optimizer state of a rank of one pipeline stage."""
    placement = layer_placement(config.model_config, config.parallel_config)
    is_last = stage == placement.num_stages - 1
    total = StateBytes(0, teacher_bytes(config) if is_last else 0, 0, 0)
    for chunk in range(placement.num_chunks):
        total += StateBytes(0, frozen_bytes(config, stage, chunk), 0, 0)
    for group, sharing in _stage_buffers(config, world_size, stage):
        total += _buffer_bytes(group, sharing, config)
    return total


def stage_matrices(config: AllConfig, world_size: int, stage: int) -> tuple[float, float]:
    """(bytes of states, operations of a step) of matrices that each of their owners has all of.

    Of the rank of a stage that has the most.
    """
    rule, bytes_, operations = config.optimizer_config, 0.0, 0.0
    if not rule.updates_matrices:
        return 0.0, 0.0
    for group, sharing in _stage_buffers(config, world_size, stage):
        layout = _layout(group, sharing, element_bytes(group[0].spec, config).gradient)
        kept = {one.name: whole_bytes(rule, one.spec) for one in group}
        works = {one.name: matrix_operations(rule, one.spec, one.shape) for one in group}
        bytes_ += _most_owned(kept, layout, sharing.shards)
        operations += _most_owned(works, layout, sharing.shards)
    return bytes_, operations


def _stage_buffers(
    config: AllConfig, world_size: int, stage: int
) -> Iterator[tuple[list[LocalParameter], _Sharing]]:
    """The buffers of a stage's rank, and how they are shared out."""
    placement = layer_placement(config.model_config, config.parallel_config)
    chunks = [chunk_parameters(config, stage, chunk) for chunk in range(placement.num_chunks)]
    count = sum(spec.size for specs in chunks for spec in specs)
    for chunk, specs in enumerate(chunks):
        for is_expert in (False, True):
            sharing = _sharing(config, world_size, stage, chunk, is_expert, count)
            mine = [spec for spec in specs if spec.is_expert == is_expert]
            for group in _buffers(mine, sharing):
                yield group, sharing


def _sharing(
    config: AllConfig, world_size: int, stage: int, chunk: int, is_expert: bool, count: int
) -> _Sharing:
    training, parallel = config.training_config, config.parallel_config
    ranks = parallel.data_parallel_size(world_size) * parallel.context_parallel_size
    is_sharded = config.shards_optimizer
    if is_expert:
        shards = expert_data_parallel_size(config, world_size)
    else:
        shards = ranks // parallel.optimizer_instances(world_size)
    is_delayed = training.delay_grad_reduce and stage > 0
    bucket_size = training.bucket_size
    if training.ddp_num_buckets is not None:
        bucket_size = max(1, count // training.ddp_num_buckets)
    return _Sharing(
        zero_level=parallel.zero_level,
        is_sharded=is_sharded,
        shards=shards if is_sharded else 1,
        reducing_ranks=ranks,
        overlap=training.overlap_grad_reduce and not is_delayed,
        bucket_size=bucket_size,
        is_bucketed=stage == 0 and chunk == 0,
        alignment_bytes=512 if training.enable_mem_align else 1,
        high_bandwidth=training.ddp_pad_buckets_for_high_nccl_busbw,
    )


def expert_data_parallel_size(config: AllConfig, world_size: int) -> int:
    """Ranks that hold copies of the same experts."""
    parallel = config.parallel_config
    tensor = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
    return world_size // (
        tensor * parallel.expert_model_parallel_size * parallel.pipeline_model_parallel_size
    )


def _buffers(specs: list[LocalParameter], sharing: _Sharing) -> list[list[LocalParameter]]:
    """Parameters that share a buffer: of one type, and kept whole or sharded alike."""
    groups: dict[tuple[str, bool], list[LocalParameter]] = {}
    for spec in specs:
        groups.setdefault((str(spec.dtype), _is_whole(spec, sharing)), []).append(spec)
    return list(groups.values())


def _is_whole(spec: LocalParameter, sharing: _Sharing) -> bool:
    return not (sharing.zero_level == "z3" and _is_matrix(spec) and not spec.is_expert)


def _is_matrix(spec: LocalParameter) -> bool:
    """Whether it is a matrix of a tensor-parallel layer, whatever the number of ranks."""
    return spec.spec.partition_dim >= 0 and len(spec.shape) > 1


def _buffer_bytes(specs: list[LocalParameter], sharing: _Sharing, config: AllConfig) -> StateBytes:
    one = element_bytes(specs[0].spec, config)
    layout = _layout(specs, sharing, one.gradient)
    owned = layout.size // sharing.shards
    largest = max(span.size for span in layout.buckets)
    weights = layout.size * one.weight
    if not _is_whole(specs[0], sharing):
        weights = (owned + WHOLE_WEIGHTS * largest) * one.weight
    gradients = layout.size * one.gradient
    if sharing.shards_gradients:
        scratch = scratch_buckets(sharing.overlap and len(layout.buckets) > 1)
        gradients = (owned + scratch * largest) * one.gradient
    count = sum(spec.size for spec in specs)
    # Padding has no states of its own kind: it takes what an element does on average.
    states = sum(spec.size * element_bytes(spec.spec, config).optimizer for spec in specs)
    whole = {spec.name: whole_bytes(config.optimizer_config, spec.spec) for spec in specs}
    optimizer = math.ceil(owned * states / max(count, 1))
    optimizer += round(_most_owned(whole, layout, sharing.shards))
    return StateBytes(count, weights, gradients, optimizer)


def _most_owned(amounts: Mapping[str, float], layout: BufferLayout, shards: int) -> float:
    """The most of any rank, where each counts all of a matrix that it owns a part of."""
    if not any(amounts.values()):
        return 0.0
    held = [0.0] * shards
    for span in layout.buckets:
        part = span.size // shards
        for slot in span.slots:
            amount = amounts.get(slot.name, 0)
            first, last = (slot.start - span.start) // part, (slot.end - 1 - span.start) // part
            for rank in range(first, last + 1) if amount else ():
                held[rank] += amount
    return max(held)


def _layout(specs: list[LocalParameter], sharing: _Sharing, grad_width: int) -> BufferLayout:
    """The buffer ``DistributedDataParallel`` makes of these parameters."""
    aligned = max(1, sharing.alignment_bytes // grad_width)
    bucket_size = sharing.bucket_size
    if not _is_whole(specs[0], sharing):
        bucket_size = 1
    elif sharing.shards_gradients:
        bucket_size = bucket_size or max(spec.size for spec in specs)
    elif not (sharing.overlap and sharing.is_bucketed):
        bucket_size = None
    elif bucket_size is None:
        bucket_size = default_bucket_size(sharing.reducing_ranks)
    rules = LayoutRules(param_alignment=aligned, bucket_size=bucket_size)
    own_bucket: set[str] = set()
    if sharing.is_sharded:
        own_bucket = {spec.name for spec in specs if spec.is_tied}
        rules = LayoutRules(
            param_alignment=max(PARAM_ALIGNMENT, aligned),
            bucket_alignment=sharded_alignment(sharing.shards, sharing.high_bandwidth),
            bucket_size=bucket_size,
        )
    return buffer_layout([(spec.name, spec.shape) for spec in specs], rules, own_bucket)
