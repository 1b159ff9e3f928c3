# SPDX-License-Identifier: Apache-2.0
"""Bytes a rank sends in one step, by the axis of the layout that needs them.

A collective over n ranks of a tensor of B bytes sends 2 B (n-1)/n per rank for an all-reduce and
B (n-1)/n for a gather, a reduce-scatter (B: the whole) or an all-to-all (ring algorithms).
"""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.dtypes import dtype_bytes
from mindspeed_ms.config.model_parallel_config import ModelParallelConfig
from mindspeed_ms.models.attention import AttentionSpec
from mindspeed_ms.models.feed_forward import MoESpec
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.recompute_plan import recompute_plan
from mindspeed_ms.plan.sequence_slices import keys_in_window
from mindspeed_ms.planning.memory import element_bytes, expert_data_parallel_size
from mindspeed_ms.planning.parameters import chunk_parameters, model_spec


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes one rank of a stage sends per step."""

    tensor: float
    context: float
    expert: float
    pipeline: float
    data: float

    @property
    def total(self) -> float:
        """Everything."""
        return self.tensor + self.context + self.expert + self.pipeline + self.data


def share(ranks: int) -> float:
    """(n - 1) / n."""
    return (ranks - 1) / ranks


def tensor_bytes_of_chunk(config: AllConfig, stage: int, chunk: int) -> float:
    """Tensor-parallel bytes of one micro-batch, forward and backward.

    Each of the two blocks of a layer reduces once in forward and once in backward; sequence
    parallelism turns each reduction into a gather and a reduce-scatter of the same bytes, and
    repeats the two gathers of inputs in backward unless they are kept.
    """
    model, parallel = config.model_config, config.parallel_config
    ranks = parallel.tensor_model_parallel_size
    if ranks == 1:
        return 0.0
    placement = layer_placement(model, parallel)
    plan = recompute_plan(model, parallel, placement, (stage, chunk))
    tokens = config.dataset_config.batch_size * model.seq_length // parallel.context_parallel_size
    unit = tokens * model.hidden_size * dtype_bytes(model.compute_dtype) * share(ranks)
    units = 0.0
    for group in plan.groups:
        for layer in group.layers:
            spec = model_spec(config).layers[layer]
            if spec is None:
                continue
            repeats = parallel.sequence_parallel and not plan.layers[layer].keeps_gathered
            units += tensor_units(spec, parallel, repeats, group.is_recomputed)
    if stage == 0 and chunk == 0:
        units += 2
    if stage == placement.num_stages - 1 and chunk == placement.num_chunks - 1:
        units += 3 if parallel.sequence_parallel else 2
    return units * unit


def tensor_units(
    layer: LayerSpec, parallel: ModelParallelConfig, repeats: bool, is_recomputed: bool
) -> float:
    """Tensor-parallel traffic of one layer and micro-batch, in gathers of the residual stream.

    Ranks that share a key/value group gather what all of them project, and sum up its gradient. A
    block of experts gathers and scatters the copies of its tokens over the ranks of an expert
    instead; only its shared expert works as a dense block does.

    Args:
        layer: the layer.
        parallel: sizes.
        repeats: backward gathers the inputs of both blocks again.
        is_recomputed: the whole forward is done again.
    """
    ranks = parallel.tensor_model_parallel_size
    times = 1.5 if is_recomputed else 1.0
    attention, mlp = layer.attention, layer.mlp
    blocks, copied = layer.num_blocks, 0.0
    if isinstance(attention, AttentionSpec) and attention.num_groups < ranks:
        copied = 2.0 * attention.qkv_proj.outputs / attention.qkv_proj.inputs
    if isinstance(mlp, MoESpec):
        blocks = 1 if mlp.shared is None else 2
        gathered = (parallel.expert_tensor_parallel_size or ranks) - 1
        copied += 4.0 * mlp.topk * gathered / (ranks * share(ranks))
    return times * (4 * blocks + copied) + (blocks if repeats else 0)


def context_bytes_of_layer(config: AllConfig, layer: int = 0) -> float:
    """Context-parallel bytes of one layer, counted from 0, and micro-batch, forward and backward.

    An all-to-all moves queries, keys, values and the result, and their gradients. A ring or a
    gather moves keys and values in forward and again in backward, where their gradients travel in
    fp32: in a ring once more than there are other ranks, because they come home. With a window
    keys go straight to the ranks that see them, and their gradients back; of these the average.
    """
    model, parallel = config.model_config, config.parallel_config
    exchanging, ring = parallel.hierarchical_context_parallel_sizes
    width = dtype_bytes(model.compute_dtype)
    ranks = parallel.tensor_model_parallel_size
    tokens = config.dataset_config.batch_size * model.seq_length // parallel.context_parallel_size
    channels = tokens * (model.kv_channels or 0)
    queries = channels * (model.num_attention_heads // ranks)
    keys = 2 * channels * max(1, model.num_kv_groups // ranks)
    copied = max(keys, 2 * channels * exchanging) if exchanging > 1 else keys
    total = 2.0 * (2 * queries + copied) * width * share(exchanging)
    if ring == 1:
        return total
    is_gathered = parallel.context_parallel_algo == "kvallgather_cp_algo"
    left, right = model.attention_window(layer)
    is_causal = parallel.attention_mask_type == "causal" and not model.is_band
    sides = (left, None if is_causal else right)
    is_limited = any(side is not None and side < model.seq_length - 1 for side in sides)
    if is_limited and not is_gathered:
        right = 0 if is_causal else right
        seen = keys_in_window(model.seq_length, ring, left, right) * ring / model.seq_length
        return total + seen * copied * (2 * width + 4)
    hops = ring - 1 if is_gathered else ring
    return total + 2 * (ring - 1) * copied * width + hops * copied * 4


def expert_bytes_of_layer(config: AllConfig, rows: int, width: int, ranks: int) -> float:
    """Bytes of one layer and micro-batch that copies of tokens are, on their way to experts.

    There and back, forward and backward.

    Args:
        config: the model.
        rows: tokens on this rank.
        width: bytes of a number of the stream.
        ranks: that the experts are spread over.
    """
    copies = rows * config.moe_config.moe_router_topk
    return 4.0 * copies * config.model_config.hidden_size * width * share(ranks)


def stage_traffic(config: AllConfig, world_size: int, stage: int, microbatches: int) -> Traffic:
    """Bytes a rank of a stage sends in a step."""
    model, parallel = config.model_config, config.parallel_config
    placement = layer_placement(model, parallel)
    chunks = range(placement.num_chunks)
    tensor = sum(tensor_bytes_of_chunk(config, stage, chunk) for chunk in chunks) * microbatches
    tokens = config.dataset_config.batch_size * model.seq_length // parallel.context_parallel_size
    width = dtype_bytes(model.compute_dtype)
    cut = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    layers = [
        layer for layer in placement.layers_of_stage(stage) if layer not in placement.noop_layers
    ]
    context = sum(context_bytes_of_layer(config, layer) for layer in layers) * microbatches
    expert = 0.0
    if parallel.expert_model_parallel_size > 1:
        moved = expert_bytes_of_layer(
            config, tokens // cut, width, parallel.expert_model_parallel_size
        )
        with_experts = sum(model.has_experts(layer) for layer in layers)
        expert = moved * with_experts * microbatches
    passes = sum(
        (not (stage == 0 and chunk == 0))
        + (not (stage == placement.num_stages - 1 and chunk == placement.num_chunks - 1))
        for chunk in chunks
    )
    stream = tokens // cut * model.hidden_size * dtype_bytes(parallel.recv_dtype)
    pipeline = float(passes * stream * microbatches) if placement.num_stages > 1 else 0.0
    data = _data_bytes(config, world_size, stage)
    steps = microbatches if parallel.shards_gradients else 1
    return Traffic(tensor, context, expert, pipeline, data * steps)


def _data_bytes(config: AllConfig, world_size: int, stage: int) -> float:
    """Reduced gradients and gathered weights of one step; experts over their own ranks."""
    parallel = config.parallel_config
    ranks = parallel.data_parallel_size(world_size) * parallel.context_parallel_size
    placement = layer_placement(config.model_config, parallel)
    specs = [
        spec
        for chunk in range(placement.num_chunks)
        for spec in chunk_parameters(config, stage, chunk)
    ]
    total = 0.0
    for is_expert in (False, True):
        mine = [spec for spec in specs if spec.is_expert == is_expert]
        size = expert_data_parallel_size(config, world_size) if is_expert else ranks
        each = [element_bytes(one.spec, config) for one in mine]
        grads = sum(one.size * of.gradient for one, of in zip(mine, each, strict=True))
        weights = sum(one.size * of.weight for one, of in zip(mine, each, strict=True))
        if config.shards_optimizer:
            total += (grads + weights) * share(max(size, 1))
        else:
            total += 2 * grads * share(max(size, 1))
    return total
