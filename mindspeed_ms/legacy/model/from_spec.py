# SPDX-License-Identifier: Apache-2.0
"""Cells from the parts of a description; see ``mindspeed_ms.models``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from mindspore import Parameter

from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.parameter import create_parameter, shard_spec_of
from mindspeed_ms.core.peft.adapted_linear import (
    AdaptedColumnLinear,
    AdaptedReplicatedLinear,
    AdaptedRowLinear,
)
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from mindspeed_ms.core.tensor_parallel.random import draw_normal, draw_uniform
from mindspeed_ms.core.tensor_parallel.replicated import ReplicatedLinear
from mindspeed_ms.models.parameter import Init, ParamSpec
from mindspeed_ms.models.part import LinearSpec


def init_method(init: Init) -> Callable[[Sequence[int]], np.ndarray]:
    """(full shape) -> initial values, drawn from the stream of initial weights."""

    def values(shape: Sequence[int]) -> np.ndarray:
        if init.std is None and not init.is_xavier:
            return np.full(tuple(shape), init.value, np.float32)
        if init.is_drawn_twice:
            draw_normal(tuple(shape), 1.0)
        if init.std is None:
            return draw_uniform(tuple(shape), math.sqrt(6.0 / sum(shape)))
        drawn = draw_normal(tuple(shape), init.std)
        if init.bound is None and init.log_range is None:
            return drawn
        rank = 0.5 * (1.0 + np.vectorize(math.erf)(drawn / math.sqrt(2.0)))  # all alike in [0, 1]
        if init.log_range is None:
            return (init.bound * (2.0 * rank - 1.0)).astype(np.float32)
        low, high = init.log_range
        return np.log(low + (high - low) * rank).astype(np.float32)

    return values


def parameter(
    spec: ParamSpec, *, group: Group | None = None, sequence_parallel: bool = False
) -> Parameter:
    """This rank's part of a parameter.

    Args:
        spec: the whole parameter.
        group: ranks that split it; None if it is whole.
        sequence_parallel: ranks of the tensor parallel group hold different tokens.
    """
    shard = shard_spec_of(spec, group, sequence_parallel)
    ranks = shard.partitions
    created = create_parameter(
        spec.local_shape(ranks, ranks),
        init_method(spec.init),
        dtype=spec.dtype,
        name=spec.name,
        shard=shard,
    )
    created.requires_grad = spec.is_trained
    return created


def column_linear(
    spec: LinearSpec,
    config: TransformerConfig,
    groups: ProcessGroups,
    *,
    is_expert: bool = False,
    skip_bias_add: bool = False,
    keeps_gathered: bool = False,
) -> ColumnParallelLinear:
    """A layer whose outputs are split.

    Args:
        spec: the layer.
        config: model configuration.
        groups: of this rank.
        is_expert: split over the expert tensor parallel ranks.
        skip_bias_add: return the bias instead of adding it.
        keeps_gathered: keep the gathered input instead of gathering it again in backward.
    """
    assert spec.split == "column", "the outputs are split"
    kind: Callable[..., ColumnParallelLinear] = ColumnParallelLinear
    if spec.adapters:
        kind = partial(AdaptedColumnLinear, spec=spec)
    layer = kind(
        spec.inputs,
        spec.outputs,
        config=config,
        init_method=init_method(spec.init),
        bias=spec.has_bias,
        stride=spec.stride,
        skip_bias_add=skip_bias_add,
        is_expert=is_expert,
        param_init_dtype=spec.dtype,
        compute_dtype=config.compute_dtype,
        tp_group=groups.expert_tensor if is_expert else groups.tensor,
        is_vocabulary=spec.is_vocabulary,
    )
    layer.plan = replace(layer.plan, keeps_gathered_input=keeps_gathered)
    return layer


def row_linear(
    spec: LinearSpec, config: TransformerConfig, groups: ProcessGroups, *, is_expert: bool = False
) -> RowParallelLinear:
    """A layer whose inputs are split already, and whose bias is returned beside the output."""
    assert spec.split == "row", "the inputs are split"
    kind: Callable[..., RowParallelLinear] = RowParallelLinear
    if spec.adapters:
        kind = partial(AdaptedRowLinear, spec=spec)
    return kind(
        spec.inputs,
        spec.outputs,
        config=config,
        init_method=init_method(spec.init),
        bias=spec.has_bias,
        input_is_parallel=True,
        skip_bias_add=True,
        is_expert=is_expert,
        param_init_dtype=spec.dtype,
        compute_dtype=config.compute_dtype,
        tp_group=groups.expert_tensor if is_expert else groups.tensor,
    )


def whole_linear(spec: LinearSpec, config: TransformerConfig) -> ReplicatedLinear:
    """A narrow layer that every rank holds in full."""
    assert spec.split == "whole", "every rank holds all of it"
    kind: Callable[..., ReplicatedLinear] = ReplicatedLinear
    if spec.adapters:
        kind = partial(AdaptedReplicatedLinear, spec=spec)
    init = init_method(spec.init)
    return kind(spec.inputs, spec.outputs, config=config, init_method=init, bias=spec.has_bias)
