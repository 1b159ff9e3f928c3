# SPDX-License-Identifier: Apache-2.0
"""``gpt_spec``: the description of a model from its configuration, the only place that reads it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import replace

from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.config.block_options import USUAL, BlockShape, Kind
from mindspeed_ms.config.dtypes import FLOAT16
from mindspeed_ms.config.transformer_config import GATED_ACTIVATIONS
from mindspeed_ms.models.adapting import adapted
from mindspeed_ms.models.attention import AttentionSpec, LatentAttentionSpec
from mindspeed_ms.models.feed_forward import MLPSpec, MoESpec, SharedExpertSpec
from mindspeed_ms.models.indexer import IndexerSpec
from mindspeed_ms.models.layer import FurtherSpec, LayerSpec, QueryLayerSpec
from mindspeed_ms.models.linear_attention import GatedDeltaSpec
from mindspeed_ms.models.model import EmbeddingSpec, ModelSpec
from mindspeed_ms.models.parameter import Init
from mindspeed_ms.models.part import BufferSpec, LinearSpec, NormSpec, TableSpec
from mindspeed_ms.models.replaced import AttentionInsteadSpec, MLPInsteadSpec
from mindspeed_ms.models.rotation import yarn_growth
from mindspeed_ms.models.scores import ScoresSpec
from mindspeed_ms.models.width import attention_scale, hidden_init, table_init


def gpt_spec(config: TransformerConfig, num_tokentypes: int = 0) -> ModelSpec:
    """The whole model, with its adapters if the configuration asks for them.

    Args:
        config: model configuration.
        num_tokentypes: rows of the embedding's token type table, 0 for none.
    """
    noop = frozenset(config.parallel_config.noop_layers or ())
    kinds: dict[Hashable, LayerSpec] = {}
    layers = []
    for index in range(config.num_layers):
        core = None if config.is_linear(index) else scores_spec(config, index)
        shape = block_shape(config, index)
        is_noop = index in noop or (shape.attention == shape.mlp == "none")
        chooser = config.chooser_of(index, config.num_layers)
        of_another = None if chooser == index else chooser
        kind = (config.has_experts(index), core, config.rotates(index), shape, of_another)
        if not is_noop and kind not in kinds:
            kinds[kind] = layer_spec(config, index)
        layers.append(None if is_noop else kinds[kind])
    further = tuple(
        _further(config, config.num_layers + depth) for depth in range(config.mtp_num_layers or 0)
    )
    if config.mtp_use_repeated_layer:
        further = further[:1] * len(further)
    spec = ModelSpec(
        embedding=embedding_spec(config, num_tokentypes),
        layers=tuple(layers),
        final_norm=norm_spec(config) if config.use_final_norm else None,
        query=query_layer_spec(config) if config.use_query_layer else None,
        further=further,
        repeats_further=config.mtp_use_repeated_layer,
        head=head_spec(config) if config.untie_embeddings_and_output_weights else None,
    )
    return adapted(spec, config.lora_config) if config.lora_config.use_lora else spec


def embedding_spec(config: TransformerConfig, num_tokentypes: int = 0) -> EmbeddingSpec:
    """Tables of tokens, of positions if the model learns them, and of token types."""

    def whole(rows: int) -> TableSpec:
        init = table_init(config, is_drawn_twice=True)
        return TableSpec(rows=rows, width=config.hidden_size, init=init, dtype=config.params_dtype)

    offset = config.position_embedding_offset
    positions = whole((config.max_position_embeddings or config.seq_length) + offset)
    return EmbeddingSpec(
        word=TableSpec(
            rows=config.vocab_size,
            width=config.hidden_size,
            init=table_init(config),
            dtype=config.embedding_init_dtype,
            is_vocabulary=True,
        ),
        position=replace(positions, offset=offset) if config.has_learned_positions else None,
        tokentype=whole(num_tokentypes) if num_tokentypes else None,
        norm=replace(
            norm_spec(config),
            kind="LayerNorm",
            zero_centered=False,
            eps=config.embed_layernorm_epsilon,
        )
        if config.embed_layernorm
        else None,
    )


def head_spec(config: TransformerConfig) -> LinearSpec:
    """A head with a matrix of its own."""
    matrix = _column(config, config.hidden_size, config.vocab_size)
    init = table_init(config) if config.use_mup else matrix.init
    return replace(matrix, is_vocabulary=True, init=init, has_bias=config.head_has_bias)


def layer_spec(config: TransformerConfig, index: int) -> LayerSpec:
    """One layer, counted from 0; those behind the model count on."""
    shape = block_shape(config, index)
    attends, feeds = shape.attention != "none", shape.mlp != "none"
    before, behind = config.use_pre_norm, config.use_sandwich_norm
    own = before and not config.shares_input_norm

    def norm(is_there: bool, scale: float = 1.0) -> NormSpec | None:
        return replace(norm_spec(config), scale=scale) if is_there else None

    return LayerSpec(
        input_norm=norm(before and attends),
        attention=_any_attention(config, index),
        post_attention_norm=norm(own and feeds),
        mlp=_any_mlp(config, index),
        attn_post_norm=norm(behind and attends, config.attn_post_norm_scale),
        ffn_post_norm=norm(behind and feeds, config.ffn_post_norm_scale),
        is_parallel=config.use_parallel_residual,
    )


def block_shape(config: TransformerConfig, index: int) -> BlockShape:
    """What attention and feed-forward block of a layer, counted from 0, are."""
    shapes = config.block_shapes(config.num_attention_heads, config.hidden_size)
    return shapes[index] if index < len(shapes) else USUAL


def _any_attention(
    config: TransformerConfig, index: int
) -> AttentionSpec | LatentAttentionSpec | GatedDeltaSpec | AttentionInsteadSpec:
    kind = block_shape(config, index).attention
    if kind != "usual":
        return AttentionInsteadSpec(hidden=config.hidden_size, linear=_instead(config, kind))
    if config.is_linear(index):
        return gated_delta_spec(config)
    if config.multi_latent_attention:
        return latent_attention_spec(config, index)
    return attention_spec(config, index)


def _any_mlp(config: TransformerConfig, index: int) -> MLPSpec | MoESpec | MLPInsteadSpec:
    shape = block_shape(config, index)
    if shape.mlp != "usual":
        return MLPInsteadSpec(hidden=config.hidden_size, linear=_instead(config, shape.mlp))
    if config.has_experts(index):
        return moe_spec(config)
    return mlp_spec(config, shape.ffn_hidden_size)


def _instead(config: TransformerConfig, kind: Kind) -> LinearSpec | None:
    """The linear layer in place of a block, or nothing."""
    width = config.hidden_size
    return _column(config, width, width, config.add_bias_linear) if kind == "linear" else None


def gated_delta_spec(config: TransformerConfig) -> GatedDeltaSpec:
    """Linear attention with a gated delta rule; its projections have no biases."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    narrow, wide = keys * config.linear_key_head_dim, values * config.linear_value_head_dim
    kinds = (narrow, narrow, wide, wide, values, values)
    return GatedDeltaSpec(
        num_key_heads=keys,
        num_value_heads=values,
        key_dim=config.linear_key_head_dim,
        value_dim=config.linear_value_head_dim,
        taps=config.linear_conv_kernel_dim,
        in_proj=replace(_column(config, config.hidden_size, sum(kinds)), stride=kinds),
        out_proj=replace(_output_projection(config, wide), has_bias=False),
        out_norm=replace(
            norm_spec(config, config.linear_value_head_dim),
            partial="always",
            zero_centered=config.layernorm_zero_centered_gamma
            and not config.linear_norm_has_plain_factor,
        ),
    )


def query_layer_spec(config: TransformerConfig) -> QueryLayerSpec:
    """The layer with learned queries; layers behind the model count on."""
    return QueryLayerSpec(
        query_embeddings=TableSpec(
            rows=config.max_position_embeddings or config.seq_length,
            width=config.hidden_size,
            init=Init(config.init_method_std),
            dtype=config.params_dtype,
        ),
        layer=layer_spec(config, config.num_layers),
    )


def _further(config: TransformerConfig, index: int) -> FurtherSpec:
    return FurtherSpec(
        enorm=norm_spec(config),
        hnorm=norm_spec(config),
        eh_proj=_column(config, 2 * config.hidden_size, config.hidden_size),
        layer=layer_spec(config, index),
        final_norm=norm_spec(config),
    )


def norm_spec(config: TransformerConfig, dim: int | None = None) -> NormSpec:
    """A normalisation of ``dim`` numbers, default the hidden size."""
    return NormSpec(
        dim=dim or config.hidden_size,
        kind="RMSNorm" if config.is_rms_norm else "LayerNorm",
        eps=config.norm_epsilon,
        dtype=config.params_dtype,
        zero_centered=config.layernorm_zero_centered_gamma,
        only_multiplies=not config.norm_has_bias,
        has_factor=config.norm_has_factor,
    )


def scores_spec(config: TransformerConfig, index: int = 0) -> ScoresSpec:
    """The core of the attention of a layer, counted from 0."""
    learned = Init(config.init_method_std) if config.softmax_type == "learnable" else None
    storage = FLOAT16 if config.scales_by_layer else config.softmax_storage
    return ScoresSpec(
        num_heads=config.num_attention_heads,
        scale=softmax_scale(config) / (index + 1 if config.scale_by_inverse_layer else 1),
        window=config.attention_window(index),
        is_band=config.is_band,
        softcap=config.attn_logit_softcapping,
        has_slopes=config.position_embedding_type == "alibi",
        scales_slopes=config.scales_alibi,
        has_sinks=config.softmax_type != "vanilla",
        sinks=learned,
        dtype=config.params_dtype,
        storage=storage,
        divisor=float(index + 1) if config.scales_by_layer else 1.0,
        rounds_weights=config.softmax_storage is not None,
    )


def softmax_scale(config: TransformerConfig) -> float:
    """Multi-latent attention grows with the stretch of its positions."""
    if config.softmax_scale is not None:
        return config.softmax_scale
    latent, width = config.mla_config, config.query_pre_attn_scalar
    if not config.multi_latent_attention and config.use_mup:
        return attention_scale(config)
    if not config.multi_latent_attention:
        return 1.0 / math.sqrt(width or config.kv_channels or 1)
    growth = yarn_growth(latent.rotary_scaling_factor, latent.mscale_all_dim)
    if config.rope_scaling.is_on:
        growth = yarn_growth(config.rope_scaling.factor, config.rope_scaling.mscale_all_dim)
    return growth * growth / math.sqrt(width or latent.query_dim)


def attention_spec(config: TransformerConfig, index: int = 0) -> AttentionSpec:
    """Attention with grouped heads, of a layer counted from 0."""
    heads, channels = config.num_attention_heads, config.kv_channels
    groups = block_shape(config, index).num_query_groups or config.num_kv_groups
    assert channels is not None, "kv_channels is filled when the section is built"
    has_bias = config.qkv_has_bias or config.add_bias_linear
    query_norm = key_norm = None
    if config.qk_layernorm_full:  # every rank normalizes all heads, and keeps its own
        query_norm = replace(norm_spec(config, heads * channels), partial="never")
        key_norm = replace(norm_spec(config, groups * channels), partial="never")
    elif config.qk_layernorm_per_head:
        own = replace(norm_spec(config, channels), only_multiplies=True, partial="never")
        query_norm, key_norm = replace(own, heads=heads), replace(own, heads=groups)
    elif config.qk_layernorm:
        query_norm = key_norm = replace(norm_spec(config, channels), partial="always")
    rows = heads * (2 if config.attention_output_gate else 1) + 2 * groups
    return AttentionSpec(
        num_heads=heads,
        num_groups=groups,
        head_dim=channels,
        core_attention=scores_spec(config, index),
        out_proj=_output_projection(config, heads * channels),
        qkv_proj=_column(config, config.hidden_size, rows * channels, has_bias),
        q_layernorm=query_norm,
        k_layernorm=key_norm,
        normalizes_all_heads=config.qk_layernorm_full,
        limit=config.clip_qkv,
        length_eps=config.norm_epsilon if config.qk_l2_norm else None,
        has_gate=config.attention_output_gate,
        rotates=config.rotates(index),
        rotates_locally=config.rotary_base_local is not None and config.has_window(index),
    )


def latent_attention_spec(config: TransformerConfig, index: int = 0) -> LatentAttentionSpec:
    """Attention from narrow vectors, of a layer counted from 0."""
    latent, heads, hidden = config.mla_config, config.num_attention_heads, config.hidden_size
    rank, narrow = latent.q_lora_rank, latent.kv_lora_rank
    queries = heads * latent.query_dim
    keys = heads * (latent.qk_head_dim + latent.v_head_dim)
    chooser = config.chooser_of(index, config.num_layers)
    has_norm = config.qk_layernorm
    epsilon = latent.norm_epsilon or config.norm_epsilon

    def narrowed(outputs: int) -> LinearSpec:
        return replace(_whole(config, hidden, outputs), has_bias=latent.down_proj_has_bias)

    return LatentAttentionSpec(
        num_heads=heads,
        qk_head_dim=latent.qk_head_dim,
        rope_dim=latent.qk_pos_emb_head_dim,
        v_head_dim=latent.v_head_dim,
        core_attention=scores_spec(config, index),
        out_proj=_output_projection(config, heads * latent.v_head_dim),
        q_proj=_column(config, hidden, queries) if rank is None else None,
        q_down_proj=None if rank is None else narrowed(rank),
        q_up_proj=None if rank is None else _column(config, rank, queries),
        kv_down_proj=narrowed(narrow + latent.qk_pos_emb_head_dim),
        kv_up_proj=_column(config, narrow, keys),
        q_layernorm=(
            replace(norm_spec(config, rank), eps=epsilon) if has_norm and rank is not None else None
        ),
        kv_layernorm=replace(norm_spec(config, narrow), eps=epsilon) if has_norm else None,
        indexer=indexer_spec(config) if config.is_sparse and chooser == index else None,
        chooser=None if chooser == index else chooser + 1,
    )


def indexer_spec(config: TransformerConfig) -> IndexerSpec:
    """What chooses the keys of sparse attention; its norm is a LayerNorm."""
    heads, width, topk = (
        config.dsa_indexer_n_heads,
        config.dsa_indexer_head_dim,
        config.dsa_indexer_topk,
    )
    assert heads is not None and width is not None and topk is not None, "they are checked"
    return IndexerSpec(
        num_heads=heads,
        head_dim=width,
        rope_dim=config.mla_config.qk_pos_emb_head_dim,
        rotates=config.dsa_indexer_rope,
        topk=topk,
        num_keys=config.seq_length,
        rectified=config.dsa_indexer_scoring_relu,
        loss_coeff=config.dsa_indexer_loss_coeff or 0.0,
        has_sparse_loss=config.dsa_indexer_use_sparse_loss,
        wq_b=_whole(config, config.mla_config.q_lora_rank or config.hidden_size, heads * width),
        wk=_whole(config, config.hidden_size, width),
        k_norm=replace(
            norm_spec(config, width),
            kind="LayerNorm",
            eps=config.dsa_indexer_k_norm_epsilon or config.norm_epsilon,
        ),
        weights_proj=_whole(config, config.hidden_size, heads),
    )


def mlp_spec(
    config: TransformerConfig,
    width: int | None = None,
    has_bias: bool | None = None,
    hidden: int | None = None,
) -> MLPSpec:
    """A dense block of a width, default the configured one, between ``hidden`` channels.

    Raises:
        ValueError: gated_linear_unit and hidden_act contradict each other.
    """
    width = width or config.ffn_hidden_size
    assert width is not None, "ffn_hidden_size is filled when the section is built"
    if has_bias is None:
        has_bias = config.mlp_has_bias or config.add_bias_linear
    stacked = 2 if config.gated_linear_unit else 1
    hidden = hidden or config.hidden_size
    mapping = _column(config, hidden, stacked * width, has_bias)
    projection = replace(_output_projection(config, width), outputs=hidden, has_bias=has_bias)
    return MLPSpec(
        mapping=replace(mapping, stride=stacked),
        projection=projection,
        activation=activation_of(config),
        is_gated=bool(config.gated_linear_unit),
        limit=config.activation_func_clamp_value,
        offset=config.glu_linear_offset,
        alpha=config.glu_alpha,
    )


def activation_of(config: TransformerConfig) -> str:
    """Name of the activation between the two matrices: in a gated unit, of the gate.

    Raises:
        ValueError: gated_linear_unit and hidden_act contradict each other.
    """
    gated, name = bool(config.gated_linear_unit), config.hidden_act
    if name in GATED_ACTIVATIONS and not gated:
        raise ValueError(
            f"gated_linear_unit is False with hidden_act {name!r}; swiglu is always gated"
        )
    return "silu" if name in GATED_ACTIVATIONS else name


def moe_spec(config: TransformerConfig) -> MoESpec:
    """A mixture of experts. The shared expert has no biases."""
    moe = config.moe_config
    shared = None
    if moe.moe_shared_expert_intermediate_size is not None:
        shared = SharedExpertSpec(
            mlp=mlp_spec(config, moe.moe_shared_expert_intermediate_size, has_bias=False),
            gate=_whole(config, config.hidden_size, 1) if moe.moe_shared_expert_gate else None,
        )
    narrow, has_bias = moe.moe_latent_size, config.add_bias_linear
    down = up = None
    if narrow is not None:
        down = replace(_whole(config, config.hidden_size, narrow), has_bias=has_bias)
        up = replace(_output_projection(config, narrow), split="whole", has_bias=has_bias)
    return MoESpec(
        num_experts=moe.num_experts,
        topk=moe.moe_router_topk,
        router=replace(
            _whole(config, config.hidden_size, moe.num_experts), has_bias=moe.moe_router_has_bias
        ),
        expert=mlp_spec(config, moe.moe_ffn_hidden_size, hidden=narrow),
        latent_down=down,
        latent_up=up,
        thresholds=BufferSpec(shape=(moe.num_experts,))
        if moe.balances_by("quantile_balancing")
        else None,
        expert_bias=BufferSpec(shape=(moe.num_experts,))
        if moe.moe_router_enable_expert_bias
        else None,
        shared=shared,
    )


def _column(
    config: TransformerConfig, inputs: int, outputs: int, has_bias: bool = False
) -> LinearSpec:
    return LinearSpec(
        inputs=inputs,
        outputs=outputs,
        split="column",
        init=hidden_init(config),
        dtype=config.params_dtype,
        has_bias=has_bias,
    )


def _whole(config: TransformerConfig, inputs: int, outputs: int) -> LinearSpec:
    """A narrow matrix that every rank holds in full."""
    return replace(_column(config, inputs, outputs), split="whole")


def _output_projection(config: TransformerConfig, width: int) -> LinearSpec:
    """From a split width into the residual stream: N(0, (std / sqrt(2 layers))^2).

    Source: Megatron-LM ``scaled_init_method_normal``.
    """
    return LinearSpec(
        inputs=width,
        outputs=config.hidden_size,
        split="row",
        init=hidden_init(config, math.sqrt(2.0 * config.num_layers)),
        dtype=config.params_dtype,
        has_bias=config.out_proj_has_bias or config.add_bias_linear,
    )
