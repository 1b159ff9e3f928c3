"""Bytes of activations one rank keeps, from forward to backward.

Legend: S tokens of a sequence on this rank (context parallelism cuts them), s those outside the
tensor-parallel regions (S/t with sequence parallelism), b micro-batch, h hidden, f inner width,
v vocabulary, N heads, G key/value groups, D channels, t tensor parallel ranks; w bytes of the
compute type, r of the residual stream.

Kept by one dense layer with nothing recomputed:

=====================  =============================================
norms                  2 (r s b h + 8 s b)
qkv input, fc1 input   2 w s b h (S instead of s where the gather is kept)
q, k, v, output        w S b (2 N + 2 G) D / t, and 4 S b N / t
fc1 output             w S b f / t (twice if gated)
fc2 input              w S b f / t
sandwich norms         2 (r s b h + 8 s b)
=====================  =============================================

Dropout masks are replayed from counters and not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.dtypes import dtype_bytes
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.recompute_plan import (
    CORE_ATTENTION,
    MLA_UP_PROJECTION,
    MLP,
    MLP_ACTIVATION,
    MOE,
    NO_RECOMPUTE,
    NORMS,
    LayerRecompute,
    recompute_plan,
)
from mindspeed_ms.plan.schedule_plan import Backward, Shape, compute_order

_STATISTICS = 8
"""Bytes per token of a norm's mean and reciprocal deviation."""


@dataclass(frozen=True, slots=True)
class ActivationBytes:
    """Activations of one rank at their peak, in bytes."""

    kept: int
    """Of all forwards in flight."""
    temporary: int
    """The most that one layer's or the head's backward needs beside it."""
    in_flight: float
    """Forwards in flight at the peak, in micro-batches through the whole stage."""

    @property
    def peak(self) -> int:
        """Both together."""
        return self.kept + self.temporary


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes of one micro-batch on one rank, in bytes."""

    tokens: int
    """S b."""
    rows: int
    """s b."""
    width: int
    stream: int
    """r s b h."""
    normed: int
    """w s b h."""

    @staticmethod
    def of(config: AllConfig) -> _Sizes:
        model, parallel = config.model_config, config.parallel_config
        tokens = model.seq_length // parallel.context_parallel_size
        tokens *= config.dataset_config.batch_size
        cut = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
        rows = tokens // cut
        width = dtype_bytes(model.compute_dtype)
        residual = model.residual_connection_dtype or model.compute_dtype
        return _Sizes(
            tokens=tokens,
            rows=rows,
            width=width,
            stream=rows * model.hidden_size * dtype_bytes(residual),
            normed=rows * model.hidden_size * width,
        )


def layer_bytes(config: AllConfig, layer: int, recompute: LayerRecompute = NO_RECOMPUTE) -> int:
    """What one layer keeps of one micro-batch."""
    model = config.model_config
    sizes = _Sizes.of(config)
    norm = sizes.stream + sizes.rows * _STATISTICS
    total = norm * (4 if model.use_sandwich_norm else 2)
    if NORMS not in recompute.modules:
        total += _linear_inputs(config, sizes, recompute)
    total += _attention_bytes(config, sizes, recompute)
    if MLP in recompute.modules:
        return total
    if model.has_experts(layer):
        if MOE in recompute.modules:
            return total
        return total + _expert_bytes(config, sizes)
    ranks = config.parallel_config.tensor_model_parallel_size
    inner = sizes.tokens * (model.ffn_hidden_size or 0) // ranks * sizes.width
    total += inner * (2 if model.gated_linear_unit else 1)
    return total if MLP_ACTIVATION in recompute.modules else total + inner


def _linear_inputs(config: AllConfig, sizes: _Sizes, recompute: LayerRecompute) -> int:
    if recompute.keeps_gathered:
        return 2 * sizes.tokens * config.model_config.hidden_size * sizes.width
    return 2 * sizes.normed


def _attention_bytes(config: AllConfig, sizes: _Sizes, recompute: LayerRecompute) -> int:
    model, ranks = config.model_config, config.parallel_config.tensor_model_parallel_size
    heads = model.num_attention_heads // ranks
    if model.multi_latent_attention:
        return _latent_bytes(config, sizes, recompute)
    groups = max(1, model.num_kv_groups // ranks)
    kept = sizes.tokens * sizes.width * 2 * (heads + groups) * (model.kv_channels or 0)
    return kept if CORE_ATTENTION in recompute.modules else kept + 4 * sizes.tokens * heads


def _latent_bytes(config: AllConfig, sizes: _Sizes, recompute: LayerRecompute) -> int:
    """Narrow vectors (twice where they are normalized), and heads of equal width."""
    model, latent = config.model_config, config.model_config.mla_config
    heads = model.num_attention_heads // config.parallel_config.tensor_model_parallel_size
    narrow = latent.kv_lora_rank + (latent.q_lora_rank or 0)
    kept = sizes.rows * sizes.width * narrow * (2 if model.qk_layernorm else 1)
    output = sizes.tokens * sizes.width * heads * latent.v_head_dim
    if MLA_UP_PROJECTION in recompute.modules:
        return kept + output
    width = max(latent.query_dim, latent.v_head_dim)
    if width > latent.v_head_dim:  # the kernel's output is wider than what the projection keeps
        output += sizes.tokens * sizes.width * heads * width
    kept += output + sizes.tokens * sizes.width * 3 * heads * width
    return kept if CORE_ATTENTION in recompute.modules else kept + 4 * sizes.tokens * heads


def _expert_bytes(config: AllConfig, sizes: _Sizes) -> int:
    """Experts see every token ``moe_router_topk`` times, evenly spread over the ranks."""
    model, moe, parallel = config.model_config, config.moe_config, config.parallel_config
    copies = sizes.rows * moe.moe_router_topk
    ranks = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
    width = moe.moe_ffn_hidden_size or model.ffn_hidden_size or 0
    gathered = copies * ranks  # with expert tensor parallelism every rank sees all tokens
    inner = gathered * width // ranks * sizes.width
    total = inner * (3 if model.gated_linear_unit else 2)
    total += 3 * copies * model.hidden_size * sizes.width + 8 * sizes.rows * moe.num_experts
    shared = moe.moe_shared_expert_intermediate_size
    if shared:
        ranks = parallel.tensor_model_parallel_size
        inner = sizes.tokens * shared // ranks * sizes.width
        total += inner * (3 if model.gated_linear_unit else 2)
    return total


def head_bytes(config: AllConfig) -> int:
    """What the final norm, the head and the loss keep of one micro-batch."""
    model, sizes = config.model_config, _Sizes.of(config)
    norm = sizes.stream + sizes.rows * _STATISTICS if model.use_final_norm else 0
    ranks = config.parallel_config.tensor_model_parallel_size
    width = 4 if not model.fp16_lm_cross_entropy else 2
    head = sizes.normed + sizes.tokens * model.vocab_size // ranks * width
    total = norm + head
    for depth in range(model.mtp_num_layers or 0):
        total += head + 3 * norm + 2 * sizes.normed
        total += layer_bytes(config, model.num_layers + depth)
    return total


def chunk_bytes(config: AllConfig, stage: int, chunk: int) -> int:
    """What one model chunk keeps of one micro-batch."""
    model, parallel = config.model_config, config.parallel_config
    placement = layer_placement(model, parallel)
    plan = recompute_plan(model, parallel, placement, (stage, chunk))
    sizes = _Sizes.of(config)
    total = 0
    for group in plan.groups:
        layers = [layer for layer in group.layers if layer not in placement.noop_layers]
        if group.is_recomputed:
            total += sizes.stream
        else:
            total += sum(layer_bytes(config, layer, plan.layers[layer]) for layer in layers)
    is_last = stage == placement.num_stages - 1 and chunk == placement.num_chunks - 1
    return total + (head_bytes(config) if is_last else sizes.stream)


def _temporary(config: AllConfig, stage: int) -> int:
    """The most memory a backward needs beside what was kept: a group, a layer, or the head."""
    model, parallel = config.model_config, config.parallel_config
    placement = layer_placement(model, parallel)
    sizes = _Sizes.of(config)
    most = 0
    for chunk in range(placement.num_chunks):
        plan = recompute_plan(model, parallel, placement, (stage, chunk))
        for group in plan.groups:
            again = [layer_bytes(config, layer) for layer in group.layers]
            if group.is_recomputed:
                most = max(most, sum(again))
            elif again:
                most = max(most, _backward_of_a_layer(config, sizes))
    if stage == placement.num_stages - 1:
        ranks = parallel.tensor_model_parallel_size
        logits = sizes.tokens * model.vocab_size // ranks
        most = max(most, logits * (4 if sizes.width == 4 else 6))
    return most


def _backward_of_a_layer(config: AllConfig, sizes: _Sizes) -> int:
    """Gradients of the widest place in a layer: the inner width of the feed-forward block."""
    model, ranks = config.model_config, config.parallel_config.tensor_model_parallel_size
    inner = sizes.tokens * (model.ffn_hidden_size or 0) // ranks * sizes.width
    whole = sizes.tokens * model.hidden_size * sizes.width
    return inner * (3 if model.gated_linear_unit else 2) + 2 * whole


def stage_activations(config: AllConfig, stage: int, microbatches: int) -> ActivationBytes:
    """Activations of a rank of one stage, at the fullest moment of a step."""
    placement = layer_placement(config.model_config, config.parallel_config)
    sizes = [chunk_bytes(config, stage, chunk) for chunk in range(placement.num_chunks)]
    shape = representative_shape(config, microbatches)
    kept = most_in_flight(shape, stage, sizes)
    whole = sum(sizes)
    return ActivationBytes(kept, _temporary(config, stage), kept / whole if whole else 0.0)


def representative_shape(config: AllConfig, microbatches: int) -> Shape:
    """The schedule of a step, shortened where more micro-batches only repeat its middle."""
    placement = layer_placement(config.model_config, config.parallel_config)
    stages, chunks = placement.num_stages, placement.num_chunks
    group = config.parallel_config.microbatch_group_size_per_vp_stage
    unit = max(group or stages, stages)
    enough = 3 * unit if chunks > 1 else 2 * stages
    if chunks > 1 and microbatches > enough:
        microbatches = enough + microbatches % unit if microbatches % unit else enough
    return Shape(stages, min(microbatches, max(enough + unit, 1)), chunks, group)


def most_in_flight(shape: Shape, stage: int, sizes: Sequence[int]) -> int:
    """Largest sum of ``sizes[chunk]`` over the forwards whose backward is still to come."""
    alive = most = 0
    for step in compute_order(shape, stage):
        if isinstance(step, Backward):
            alive -= sizes[step.chunk]
        else:
            alive += sizes[step.chunk]
            most = max(most, alive)
    return most
