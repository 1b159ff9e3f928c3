# SPDX-License-Identifier: Apache-2.0
"""The parameters one rank holds, from the description of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.dtypes import DType, dtype_bytes
from mindspeed_ms.models import ModelSpec, ParamSpec, gpt_spec
from mindspeed_ms.models.teacher import teacher_config
from mindspeed_ms.plan.layer_placement import layer_placement


@dataclass(frozen=True, slots=True)
class LocalParameter:
    """A parameter on one rank."""

    spec: ParamSpec
    shape: tuple[int, ...]
    """On this rank."""
    is_tied: bool = False
    """A table that two pipeline stages hold."""

    @property
    def name(self) -> str:
        """Of the parameter."""
        return self.spec.name

    @property
    def dtype(self) -> DType:
        """Of its elements."""
        return self.spec.dtype

    @property
    def is_expert(self) -> bool:
        """Whether it belongs to an expert."""
        return self.spec.expert is not None

    @property
    def size(self) -> int:
        """Elements on this rank."""
        return math.prod(self.shape)


class _Identity:
    """A configuration as a key: sections may hold dictionaries, which have no hash."""

    __slots__ = ("config",)

    def __init__(self, config: AllConfig) -> None:
        self.config = config

    def __hash__(self) -> int:
        return id(self.config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.config is self.config


def model_spec(config: AllConfig) -> ModelSpec:
    """The model of a configuration; a plan asks for it many times."""
    return _model_spec(_Identity(config))


@lru_cache(maxsize=8)
def _model_spec(key: _Identity) -> ModelSpec:
    return gpt_spec(key.config.model_config)


def chunk_parameters(config: AllConfig, stage: int, chunk: int) -> list[LocalParameter]:
    """Trained parameters of one rank of a pipeline stage in one model chunk, in the model's order.

    Ranks of an expert parallel group hold different experts of the same sizes: it is the first.
    """
    return [one for one in _of_chunk(config, stage, chunk) if one.spec.is_trained]


def frozen_bytes(config: AllConfig, stage: int, chunk: int) -> int:
    """Bytes of the weights below adapters that a rank holds; they have nothing but their values."""
    held = [one for one in _of_chunk(config, stage, chunk) if one.spec.is_frozen]
    return sum(one.size * dtype_bytes(one.dtype) for one in held)


def teacher_bytes(config: AllConfig) -> int:
    """Bytes of the weights of a teacher in memory, on each rank of the last pipeline stage."""
    if not config.training_config.qad_enable:
        return 0
    held = _of_chunk(_teacher(_Identity(config)), 0, 0)
    return sum(one.size * dtype_bytes(one.dtype) for one in held)


@lru_cache(maxsize=8)
def _teacher(key: _Identity) -> AllConfig:
    return teacher_config(key.config)


def _of_chunk(config: AllConfig, stage: int, chunk: int) -> tuple[LocalParameter, ...]:
    return _of_place(_Identity(config), stage, chunk)


@lru_cache(maxsize=128)
def _of_place(key: _Identity, stage: int, chunk: int) -> tuple[LocalParameter, ...]:
    config = key.config
    parallel, spec = config.parallel_config, model_spec(config)
    tensor = parallel.tensor_model_parallel_size
    expert_tensor = parallel.expert_tensor_parallel_size or tensor
    experts = range(config.moe_config.num_experts // parallel.expert_model_parallel_size)
    placement = layer_placement(config.model_config, parallel)
    is_apart = placement.num_stages > 1 and spec.has_shared_embedding
    shared = {next(spec.before_layers()).name, spec.embedding_copy.name} if is_apart else ()
    return tuple(
        LocalParameter(
            one.among(one.ranks_of(tensor, expert_tensor)),
            one.local_shape(tensor, expert_tensor),
            one.name in shared,
        )
        for one in spec.of_chunk(placement, stage, chunk, experts)
    )


def total_parameters(config: AllConfig) -> int:
    """Parameters of the whole model, every one counted once."""
    return _total(model_spec(config))


@lru_cache(maxsize=8)
def _total(spec: ModelSpec) -> int:
    return spec.num_parameters
