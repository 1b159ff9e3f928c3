"""Floating point operations of the parts of a model.

Source: Megatron-LM ``num_floating_point_operations`` (what is counted: matrix products, attention
over the whole sequence without credit for the causal half).
"""

from __future__ import annotations

from mindspeed_ms.config import AllConfig, MoEConfig, TransformerConfig
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.recompute_plan import CORE_ATTENTION, MLP, recompute_plan
from mindspeed_ms.planning.parameters import is_moe_layer

BACKWARD = 2.0
"""Operations of a backward per operation of its forward."""


def attention_operations(model: TransformerConfig) -> tuple[float, float]:
    """Forward operations per token: (projections, scores and weighted values)."""
    if model.multi_latent_attention:
        return _latent_attention_operations(model)
    channels = model.kv_channels or 0
    heads = model.num_attention_heads * channels
    groups = model.num_kv_groups * channels
    projections = 2.0 * model.hidden_size * (2 * heads + 2 * groups)
    return projections, 4.0 * model.seq_length * heads


def _latent_attention_operations(model: TransformerConfig) -> tuple[float, float]:
    latent, hidden, heads = model.mla_config, model.hidden_size, model.num_attention_heads
    query, value, narrow = latent.query_dim, latent.v_head_dim, latent.q_lora_rank
    queries = hidden * heads * query if narrow is None else narrow * (hidden + heads * query)
    keys = hidden * (latent.kv_lora_rank + latent.qk_pos_emb_head_dim)
    keys += latent.kv_lora_rank * heads * (latent.qk_head_dim + value)
    projections = 2.0 * (queries + keys + heads * value * hidden)
    return projections, 2.0 * model.seq_length * heads * (query + value)


def feed_forward_operations(model: TransformerConfig, width: int) -> float:
    """Forward operations per token of one feed-forward block."""
    matrices = 3 if model.gated_linear_unit else 2
    return 2.0 * matrices * model.hidden_size * width


def layer_operations(model: TransformerConfig, moe: MoEConfig, layer: int) -> float:
    """Forward operations per token of one layer."""
    total = sum(attention_operations(model)) + feed_forward_of_layer(model, moe, layer)
    return total


def feed_forward_of_layer(model: TransformerConfig, moe: MoEConfig, layer: int) -> float:
    """Forward operations per token of a layer's feed-forward block, experts included."""
    if not is_moe_layer(moe, layer):
        return feed_forward_operations(model, model.ffn_hidden_size or 0)
    width = (moe.moe_ffn_hidden_size or model.ffn_hidden_size or 0) * moe.moe_router_topk
    total = feed_forward_operations(model, width + (moe.moe_shared_expert_intermediate_size or 0))
    return total + 2.0 * model.hidden_size * moe.num_experts


def head_operations(model: TransformerConfig) -> float:
    """Forward operations per token of the head."""
    return 2.0 * model.hidden_size * model.vocab_size


def further_operations(model: TransformerConfig) -> float:
    """Forward operations per token of the layers that predict further tokens."""
    layer = layer_operations(model, model.moe_config, model.num_layers - 1)
    join = 2.0 * model.hidden_size * 2 * model.hidden_size
    return (model.mtp_num_layers or 0) * (layer + join + head_operations(model))


def step_operations(model: TransformerConfig, sequences: int) -> float:
    """Forward and backward of one step over all ranks, without recomputation."""
    noop = set(model.parallel_config.noop_layers or ())
    forward = head_operations(model) + further_operations(model)
    forward += sum(
        layer_operations(model, model.moe_config, layer)
        for layer in range(model.num_layers)
        if layer not in noop
    )
    return (1 + BACKWARD) * forward * sequences * model.seq_length


def chunk_operations(config: AllConfig, stage: int, chunk: int) -> tuple[float, float]:
    """(forward, backward with recomputation) of one micro-batch on one rank of a chunk."""
    model, parallel = config.model_config, config.parallel_config
    placement = layer_placement(model, parallel)
    plan = recompute_plan(model, parallel, placement, (stage, chunk))
    forward = again = 0.0
    for group in plan.groups:
        for layer in group.layers:
            if layer in placement.noop_layers:
                continue
            cost = layer_operations(model, config.moe_config, layer)
            forward += cost
            modules = plan.layers[layer].modules
            if group.is_recomputed:
                again += cost
            else:
                if CORE_ATTENTION in modules:
                    again += attention_operations(model)[1]
                if MLP in modules:
                    again += feed_forward_of_layer(model, config.moe_config, layer)
    if stage == placement.num_stages - 1 and chunk == placement.num_chunks - 1:
        forward += head_operations(model) + further_operations(model)
    tokens = config.dataset_config.batch_size * model.seq_length
    share = tokens / (parallel.tensor_model_parallel_size * parallel.context_parallel_size)
    return forward * share, (BACKWARD * forward + again) * share
