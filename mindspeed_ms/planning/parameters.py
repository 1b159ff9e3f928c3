"""The parameters each rank holds, as shapes: the model's construction without the model.

Legend: h hidden, f inner width, v vocabulary, N heads, G key/value groups, D channels of a head,
E experts; t tensor parallel, e expert parallel, u expert tensor parallel ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mindspeed_ms.config import AllConfig, MoEConfig, TransformerConfig
from mindspeed_ms.config.dtypes import DType
from mindspeed_ms.plan.layer_placement import layer_placement


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One parameter of one rank."""

    name: str
    shape: tuple[int, ...]
    """On this rank."""
    dtype: DType
    is_expert: bool = False
    is_cut: bool = False
    """A matrix of a tensor-parallel layer, whatever the number of ranks."""
    is_tied: bool = False
    """The embedding that the head shares, on pipelines of several stages."""

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def is_moe_layer(moe: MoEConfig, layer: int) -> bool:
    """Whether a layer, numbered from 0, has experts.

    Source: Megatron-LM core 0.12 ``moe_layer_freq`` (a number n: every n-th layer from the first).
    """
    return moe.moe_layers(layer + 1)[layer]


def chunk_parameters(config: AllConfig, stage: int, chunk: int) -> list[ParameterSpec]:
    """Parameters of one rank of a pipeline stage in one model chunk, in the model's order."""
    model = config.model_config
    placement = layer_placement(model, config.parallel_config)
    is_first = stage == 0 and chunk == 0
    is_last = stage == placement.num_stages - 1 and chunk == placement.num_chunks - 1
    found: list[ParameterSpec] = []
    if is_first:
        found += _embedding(config, is_tied=_is_tied_over_stages(config))
    for layer in placement.layers_of(stage, chunk):
        if layer not in placement.noop_layers:
            found += layer_parameters(config, layer)
    if is_last:
        if model.use_final_norm:
            found += _norm(model, "encoder.final_norm", model.hidden_size)
        found += _further_layers(config)
        if model.untie_embeddings_and_output_weights:
            found.append(_table(config, "output_layer.weight", model.params_dtype))
        if not is_first and _is_tied_over_stages(config):
            name = "embedding.word_embeddings.weight"
            found.append(_table(config, name, model.embedding_init_dtype, is_tied=True))
    return found


def _further_layers(config: AllConfig) -> list[ParameterSpec]:
    """Parameters of the layers that predict further tokens."""
    model, ranks = config.model_config, config.parallel_config.tensor_model_parallel_size
    found: list[ParameterSpec] = []
    for depth in range(model.mtp_num_layers or 0):
        start = f"mtp.layers.{depth}"
        for name in ("enorm", "hnorm", "final_norm"):
            found += _norm(model, f"{start}.{name}", model.hidden_size)
        shape = (model.hidden_size // ranks, 2 * model.hidden_size)
        found += _linear(model, f"{start}.eh_proj", shape, None)
        found += layer_parameters(config, model.num_layers - 1, f"{start}.transformer_layer")
    return found


def _is_tied_over_stages(config: AllConfig) -> bool:
    """Whether the last stage has a copy of the first one's embedding."""
    model = config.model_config
    tied = not model.untie_embeddings_and_output_weights or model.mtp_num_layers is not None
    return tied and config.parallel_config.pipeline_model_parallel_size > 1


def _table(config: AllConfig, name: str, dtype: DType, is_tied: bool = False) -> ParameterSpec:
    model, ranks = config.model_config, config.parallel_config.tensor_model_parallel_size
    shape = (model.vocab_size // ranks, model.hidden_size)
    return ParameterSpec(name, shape, dtype, is_cut=True, is_tied=is_tied)


def _embedding(config: AllConfig, is_tied: bool) -> list[ParameterSpec]:
    model = config.model_config
    dtype = model.embedding_init_dtype
    found = [_table(config, "embedding.word_embeddings.weight", dtype, is_tied)]
    if model.has_learned_positions:
        rows = model.max_position_embeddings or model.seq_length
        name = "embedding.position_embeddings.weight"
        found.append(ParameterSpec(name, (rows, model.hidden_size), dtype))
    return found


def _norm(model: TransformerConfig, name: str, width: int) -> list[ParameterSpec]:
    names = ("weight",) if model.is_rms_norm else ("gamma", "beta")
    return [ParameterSpec(f"{name}.{part}", (width,), model.params_dtype) for part in names]


def layer_parameters(
    config: AllConfig, layer: int, start: str | None = None
) -> list[ParameterSpec]:
    """Parameters of one layer on one rank, under its own name or that of a layer like it."""
    model = config.model_config
    start = f"encoder.layers.{layer}" if start is None else start
    found = _norm(model, f"{start}.input_norm", model.hidden_size)
    if model.multi_latent_attention:
        found += _latent_attention(config, f"{start}.attention")
    else:
        found += _attention(config, f"{start}.attention")
    found += _norm(model, f"{start}.post_attention_norm", model.hidden_size)
    if is_moe_layer(config.moe_config, layer):
        found += _experts(config, f"{start}.mlp")
    else:
        width = model.ffn_hidden_size or 0
        ranks = config.parallel_config.tensor_model_parallel_size
        found += _feed_forward(model, f"{start}.mlp", width // ranks)
    if model.use_sandwich_norm:
        for name in ("attn_post_norm", "ffn_post_norm"):
            found += _norm(model, f"{start}.{name}", model.hidden_size)
    return found


def _linear(
    model: TransformerConfig,
    name: str,
    shape: tuple[int, int],
    bias: int | None,
    is_expert: bool = False,
) -> list[ParameterSpec]:
    dtype = model.params_dtype
    found = [ParameterSpec(f"{name}.weight", shape, dtype, is_expert, is_cut=True)]
    if bias is not None:
        found.append(ParameterSpec(f"{name}.bias", (bias,), dtype, is_expert))
    return found


def _attention(config: AllConfig, name: str) -> list[ParameterSpec]:
    model, ranks = config.model_config, config.parallel_config.tensor_model_parallel_size
    channels, hidden = model.kv_channels or 0, model.hidden_size
    heads = model.num_attention_heads * channels // ranks
    rows = heads + 2 * model.num_kv_groups * channels // ranks
    has_out_bias = model.out_proj_has_bias or model.add_bias_linear
    has_qkv_bias = model.qkv_has_bias or model.add_bias_linear
    found = _linear(model, f"{name}.out_proj", (hidden, heads), hidden if has_out_bias else None)
    found += _linear(model, f"{name}.qkv_proj", (rows, hidden), rows if has_qkv_bias else None)
    if model.qk_layernorm:
        for part in ("q_layernorm", "k_layernorm"):
            found += _norm(model, f"{name}.{part}", channels)
    return found


def _latent_attention(config: AllConfig, name: str) -> list[ParameterSpec]:
    model, ranks = config.model_config, config.parallel_config.tensor_model_parallel_size
    latent, hidden = model.mla_config, model.hidden_size
    heads = model.num_attention_heads // ranks
    has_bias = model.out_proj_has_bias or model.add_bias_linear
    found = _linear(
        model, f"{name}.out_proj", (hidden, heads * latent.v_head_dim), hidden if has_bias else None
    )
    queries = heads * latent.query_dim
    if latent.q_lora_rank is None:
        found += _linear(model, f"{name}.q_proj", (queries, hidden), None)
    else:
        found += _whole(model, f"{name}.q_down_proj", (latent.q_lora_rank, hidden))
        found += _linear(model, f"{name}.q_up_proj", (queries, latent.q_lora_rank), None)
    narrow = latent.kv_lora_rank
    found += _whole(model, f"{name}.kv_down_proj", (narrow + latent.qk_pos_emb_head_dim, hidden))
    rows = heads * (latent.qk_head_dim + latent.v_head_dim)
    found += _linear(model, f"{name}.kv_up_proj", (rows, narrow), None)
    if model.qk_layernorm:
        if latent.q_lora_rank is not None:
            found += _norm(model, f"{name}.q_layernorm", latent.q_lora_rank)
        found += _norm(model, f"{name}.kv_layernorm", narrow)
    return found


def _whole(model: TransformerConfig, name: str, shape: tuple[int, int]) -> list[ParameterSpec]:
    """A matrix that every tensor parallel rank holds in full."""
    return [ParameterSpec(f"{name}.weight", shape, model.params_dtype)]


def _feed_forward(
    model: TransformerConfig,
    name: str,
    width: int,
    is_expert: bool = False,
    has_bias: bool | None = None,
) -> list[ParameterSpec]:
    rows, hidden = width * (2 if model.gated_linear_unit else 1), model.hidden_size
    if has_bias is None:
        has_bias = model.mlp_has_bias or model.add_bias_linear
    found = _linear(model, f"{name}.mapping", (rows, hidden), rows if has_bias else None, is_expert)
    found += _linear(
        model, f"{name}.projection", (hidden, width), hidden if has_bias else None, is_expert
    )
    return found


def _experts(config: AllConfig, name: str) -> list[ParameterSpec]:
    model, moe, parallel = config.model_config, config.moe_config, config.parallel_config
    router = (moe.num_experts, model.hidden_size)
    found = [ParameterSpec(f"{name}.router.weight", router, model.params_dtype)]
    ranks = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
    width = (moe.moe_ffn_hidden_size or model.ffn_hidden_size or 0) // ranks
    for expert in range(moe.num_experts // parallel.expert_model_parallel_size):
        found += _feed_forward(model, f"{name}.experts.{expert}", width, is_expert=True)
    shared = moe.moe_shared_expert_intermediate_size
    if shared:
        ranks = parallel.tensor_model_parallel_size
        shared_name = f"{name}.shared_experts"
        found += _feed_forward(model, f"{shared_name}.mlp", shared // ranks, has_bias=False)
        if moe.moe_shared_expert_gate:
            found += _whole(model, f"{shared_name}.gate", (1, model.hidden_size))
    return found


def total_parameters(config: AllConfig) -> int:
    """Parameters of the whole model, every one counted once."""
    parallel = config.parallel_config
    tensor = parallel.tensor_model_parallel_size
    expert_ranks = (parallel.expert_tensor_parallel_size or tensor) * (
        parallel.expert_model_parallel_size
    )
    placement = layer_placement(config.model_config, parallel)
    total, seen_tied = 0, False
    for stage in range(placement.num_stages):
        for chunk in range(placement.num_chunks):
            for spec in chunk_parameters(config, stage, chunk):
                if spec.is_tied and seen_tied:
                    continue
                seen_tied = seen_tied or spec.is_tied
                total += spec.size * copies_of(spec, tensor, expert_ranks)
    return total


def copies_of(spec: ParameterSpec, tensor: int, expert_ranks: int) -> int:
    """Parts that make the whole parameter: 1 for one that every rank holds whole."""
    if spec.is_expert:
        is_whole = spec.name.endswith("projection.bias")
        return expert_ranks if not is_whole else max(1, expert_ranks // tensor)
    if spec.is_cut:
        return tensor
    return tensor if spec.name.endswith(("qkv_proj.bias", "mapping.bias")) else 1
