# SPDX-License-Identifier: Apache-2.0
"""What a model computes, as plain values: the options that another format must hold or refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mindspeed_ms.config import AllConfig, TransformerConfig
from mindspeed_ms.config.block_options import USUAL
from mindspeed_ms.config.moe_config import BY_CHOICES
from mindspeed_ms.config.section import field_names
from mindspeed_ms.models.gpt import activation_of, softmax_scale
from mindspeed_ms.models.rotation import growth
from mindspeed_ms.models.width import embedding_factor, logits_divisor

RUN_SETTINGS = frozenset(
    {
        # how numbers are held
        "params_dtype",
        "compute_dtype",
        "softmax_compute_dtype",
        "attention_softmax_in_fp32",
        "embedding_init_dtype",
        "residual_connection_dtype",
        "fp32_residual_connection",
        "fp16_lm_cross_entropy",
        "moe_router_dtype",
        # which kernels compute them, and what backward does again
        "transformer_impl",
        "use_flash_attention",
        "fa_config",
        "mask_func_type",
        "apply_rope_fusion",
        "apply_swiglu_fusion",
        "apply_query_key_layer_scaling",
        "recompute_granularity",
        "recompute_method",
        "recompute_num_layers",
        "recompute_modules",
        "moe_grouped_gemm",
        "moe_token_dispatcher_type",
        "use_self_defined_alltoall",
        "moe_shared_expert_overlap",
        "moe_layer_recompute",
        "moe_permute_fusion",
        "moe_per_layer_logging",
        # what only training does
        "qk_clip",
        "qk_clip_alpha",
        "qk_clip_threshold",
        "init_method_std",
        "embedding_init_method_std",
        "init_method_xavier_uniform",
        "attention_dropout_rate",
        "hidden_dropout_rate",
        "mtp_loss_scaling_factor",
        "mtp_detach_heads",
        "dsa_indexer_loss_coeff",
        "dsa_indexer_use_sparse_loss",
        "moe_aux_loss_coeff",
        "moe_z_loss_coeff",
        "moe_input_jitter_eps",
        "moe_router_bias_update_rate",
        "moe_router_quantile_balancing_ema",
        "moe_device_level_aux_loss_coeff",
        "moe_comm_aux_loss_coeff",
        "seq_aux",
        "moe_use_upcycling",
        "moe_upcycling_granularity",
        "moe_router_force_biased",
        "moe_router_force_load_balancing",
        # spoken through moe_layer_freq, below
        "first_k_dense_replace",
        # lengths and padding, which a run may choose
        "vocab_size",
        "seq_length",
        "max_position_embeddings",
    }
)
"""Fields that do not change what a trained model computes. A new field counts as changing it."""

WIDTH = frozenset(
    {
        *("use_mup", "mup_base_hidden_size", "mup_embedding_mult", "mup_output_mult"),
        *("mup_base_head_dim", "mup_attn_scale_power"),
    }
)
"""Options that speak through others: the scale of scores, the factors of embedding and logits."""

_ROTARY = ("rotary_base", "rotary_percent", "rotary_interleaved", "rope_scaling")


_LATENT_YARN = frozenset(
    f"mla_config.{name}"
    for name in (
        *("rotary_scaling_factor", "original_max_position_embeddings", "mscale"),
        *("mscale_all_dim", "beta_fast", "beta_slow"),
    )
)
"""What only positions that are stretched by yarn read."""


def identity(config: AllConfig) -> dict[str, Any]:
    """Option -> value, without those that this model does not use; spellings are made equal."""
    model, moe = config.model_config, config.moe_config
    found = {
        f"model_config.{name}": getattr(model, name)
        for name in field_names(type(model))
        if name not in RUN_SETTINGS | WIDTH and name not in type(model).LINKS
    }
    found |= {
        "model_config.embedding_multiplier": embedding_factor(model),
        "model_config.logits_scaling": logits_divisor(model),
        "model_config.mtp_use_repeated_layer": (
            model.mtp_use_repeated_layer and (model.mtp_num_layers or 1) > 1
        ),
    }
    for name in (
        "rotary_seq_len_interpolation_factor",
        "use_rope_scaling",
        "rope_scaling_factor",
    ):
        del found[f"model_config.{name}"]
    found["model_config.rope_scaling"] = _stretching(model)
    for name in _unread(model):
        del found[f"model_config.{name}"]
    if model.has_learned_positions:
        found["model_config.max_position_embeddings"] = model.max_position_embeddings
    found |= {
        "model_config.position_embedding_type": (
            "absolute" if model.has_learned_positions else model.position_embedding_type
        ),
        "model_config.normalization": "RMSNorm" if model.is_rms_norm else "LayerNorm",
        "model_config.hidden_act": activation_of(model),
        "model_config.num_query_groups": model.num_kv_groups,
        "model_config.qkv_has_bias": model.qkv_has_bias or model.add_bias_linear,
        "model_config.out_proj_has_bias": model.out_proj_has_bias or model.add_bias_linear,
        "model_config.mlp_has_bias": model.mlp_has_bias or model.add_bias_linear,
    }
    shapes = model.block_shapes(model.num_attention_heads, model.hidden_size)
    found["model_config.heterogeneous_layers_config_encoded_json"] = (
        tuple(map(str, shapes)) if set(shapes) - {USUAL} else None
    )
    for name in ("group_query_attention", "add_bias_linear"):
        del found[f"model_config.{name}"]
    found |= _attention(config)
    for name in ("window_attn_skip_freq", "query_pre_attn_scalar"):
        del found[f"model_config.{name}"]
    if model.multi_latent_attention:
        for name in ("kv_channels", "num_query_groups"):
            del found[f"model_config.{name}"]
        latent = model.mla_config
        del found["model_config.mla_config"]
        found |= {f"mla_config.{name}": getattr(latent, name) for name in field_names(type(latent))}
        found["mla_config.norm_epsilon"] = latent.norm_epsilon or model.norm_epsilon
        if latent.rope_type == "rope" or latent.rotary_scaling_factor == 1.0:
            found = {key: value for key, value in found.items() if key not in _LATENT_YARN}
            found["mla_config.rope_type"] = "rope"
        elif latent.original_max_position_embeddings is None:
            found["mla_config.original_max_position_embeddings"] = model.max_position_embeddings
    else:
        del found["model_config.mla_config"]
    if moe.is_moe:
        found |= _experts(config)
    return found


def _unread(model: TransformerConfig) -> Iterator[str]:
    """Options that only models with another option read."""
    if not (model.position_embedding_type == "rope" or model.multi_latent_attention):
        yield from _ROTARY
    if model.position_embedding_type != "alibi":
        yield "scales_alibi"
    if not model.embed_layernorm:
        yield "embed_layernorm_epsilon"
    if not (model.has_linear_layers and model.layernorm_zero_centered_gamma):
        yield "linear_norm_has_plain_factor"
    if model.is_rms_norm or not model.norm_has_factor:
        yield "norm_has_bias"
    if not model.use_sandwich_norm:
        yield from ("attn_post_norm_scale", "ffn_post_norm_scale")


def _stretching(model: TransformerConfig) -> tuple[tuple[str, object], ...]:
    """How positions are stretched, with what follows from other fields filled in."""
    stretching = model.rope_stretching
    longest = model.max_position_embeddings or model.seq_length
    found = dict(stretching.values())
    if "original_max_position_embeddings" in found:
        found["original_max_position_embeddings"] = (
            stretching.original_max_position_embeddings or longest
        )
    if "attention_factor" in found:
        found["attention_factor"] = float(f"{growth(stretching, longest):.9g}")
        found.pop("mscale", None), found.pop("mscale_all_dim", None)
    if stretching.rope_type == "dynamic":
        found["max_position_embeddings"] = longest
    return tuple(found.items())


def _attention(config: AllConfig) -> dict[str, Any]:
    """What the layers see, rotate and scale by, however it is written."""
    model = config.model_config
    layers = range(model.num_layers)
    windows = [model.attention_window(layer) for layer in layers]
    seen = tuple((left, right if model.is_band else 0) for left, right in windows)
    rotated = tuple(model.rotates(layer) for layer in layers)
    local = model.rotary_base_local if any(map(model.has_window, layers)) else None
    return {
        "model_config.window_size": None if set(seen) == {(None, 0)} else seen,
        "model_config.no_rope_freq": None if all(rotated) else rotated,
        "model_config.rotary_base_local": local,
        "model_config.softmax_scale": float(f"{softmax_scale(model):.9g}"),
    }


def _experts(config: AllConfig) -> dict[str, Any]:
    model, moe = config.model_config, config.moe_config
    found = {
        f"moe_config.{name}": getattr(moe, name)
        for name in field_names(type(moe))
        if name not in RUN_SETTINGS
    }
    found["moe_config.moe_layer_freq"] = tuple(
        model.has_experts(layer) for layer in range(model.num_layers)
    )
    found["moe_config.moe_ffn_hidden_size"] = moe.moe_ffn_hidden_size or model.ffn_hidden_size
    if moe.moe_router_num_groups and moe.moe_router_group_topk:
        best = moe.moe_router_group_scores or moe.moe_router_topk // moe.moe_router_group_topk
        found["moe_config.moe_router_group_scores"] = best
    # Only these kinds of balancing take part in the choice of experts.
    found["moe_config.moe_router_load_balancing_type"] = next(
        (kind for kind in BY_CHOICES if moe.balances_by(kind)), None
    )
    if moe.normalizes_weights and moe.moe_router_score_function == "softmax":
        # Shares of all that are made to sum to 1 are shares of those that were chosen.
        has_groups = moe.moe_router_num_groups is not None
        found["moe_config.moe_router_pre_softmax"] = moe.moe_router_pre_softmax and has_groups
    elif moe.moe_router_score_function != "softmax":
        del found["moe_config.moe_router_pre_softmax"]
    del found["moe_config.moe_router_norm_topk_prob"]
    found["moe_config.moe_router_weights"] = "normalized" if moe.normalizes_weights else "scores"
    if moe.moe_expert_capacity_factor is None:
        del found["moe_config.moe_token_drop_policy"]
        del found["moe_config.moe_pad_expert_input_to_capacity"]
    return found
