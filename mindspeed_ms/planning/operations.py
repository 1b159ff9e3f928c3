# SPDX-License-Identifier: Apache-2.0
"""Floating point operations of the parts of a model.

Source: Megatron-LM ``num_floating_point_operations`` (what is counted: matrix products, attention
over the whole sequence without credit for the causal half).
"""

from __future__ import annotations

from mindspeed_ms.config import AllConfig, TransformerConfig
from mindspeed_ms.models import ModelSpec, gpt_spec
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.recompute_plan import recompute_plan
from mindspeed_ms.planning.parameters import model_spec

BACKWARD, FROZEN_BACKWARD = 2.0, 1.0
"""Operations of a backward per operation of its forward; frozen matrices get no gradient."""


def backward_operations(spec: ModelSpec) -> float:
    """Operations of a backward per operation of its forward."""
    return FROZEN_BACKWARD if spec.trains_adapters_only else BACKWARD


def head_operations(spec: ModelSpec) -> float:
    """Forward operations per token of the head."""
    return 2.0 * spec.hidden_size * spec.vocab_size


def tail_operations(spec: ModelSpec, seq_length: int) -> float:
    """Forward operations per token of the heads and of the layers behind the model."""
    behind = sum(one.operations(seq_length) for one in spec.further)
    behind += 0.0 if spec.query is None else spec.query.operations(seq_length)
    return behind + (1 + len(spec.further)) * head_operations(spec)


def step_operations(model: TransformerConfig, sequences: int) -> float:
    """Forward and backward of one step over all ranks, without recomputation."""
    spec = gpt_spec(model)
    forward = tail_operations(spec, model.seq_length)
    forward += sum(layer.operations(model.seq_length) for layer in spec.layers if layer is not None)
    return (1 + backward_operations(spec)) * forward * sequences * model.seq_length


def tflops_per_rank(
    model: TransformerConfig, sequences: int, seconds: float, world_size: int
) -> float:
    """Tera floating point operations per second and rank, as the log line counts them."""
    return step_operations(model, sequences) / (seconds * 1.0e12 * world_size)


def chunk_operations(config: AllConfig, stage: int, chunk: int) -> tuple[float, float]:
    """(forward, backward with recomputation) of one micro-batch on one rank of a chunk."""
    model, parallel, spec = config.model_config, config.parallel_config, model_spec(config)
    placement = layer_placement(model, parallel)
    plan = recompute_plan(model, parallel, placement, (stage, chunk))
    forward = again = 0.0
    for group in plan.groups:
        for index in group.layers:
            layer = spec.layers[index]
            if layer is None:
                continue
            cost = layer.operations(model.seq_length)
            forward += cost
            again += (
                cost
                if group.is_recomputed
                else layer.repeated_operations(model.seq_length, plan.layers[index])
            )
    if stage == placement.num_stages - 1 and chunk == placement.num_chunks - 1:
        forward += tail_operations(spec, model.seq_length)
    tokens = config.dataset_config.batch_size * model.seq_length
    share = tokens / (parallel.tensor_model_parallel_size * parallel.context_parallel_size)
    return forward * share, (backward_operations(spec) * forward + again) * share
