# SPDX-License-Identifier: Apache-2.0
"""Settings of the tiny models that ``record_families.py`` records."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
PARTIAL = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}
GLM_EXPERTS = {
    **{"head_dim": 8, "attention_bias": True, "n_routed_experts": 8, "n_shared_experts": 1},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 12, "routed_scaling_factor": 1.5},
}
GLM = {
    **HEAD,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
}
GRANITE_EXPERTS = {
    **{"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 4.0},
    **{"embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2},
}
SMALL_GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}
WINDOWS = {"sliding_window": 6}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}


def rope(kind: str, **entries: Any) -> dict[str, Any]:
    """A ``rope_parameters`` of version 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **entries}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", SMALL_GPT),
    "llama": ("Llama", {}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama_linear": ("Llama", rope("linear", factor=3.0)),
    "llama_dynamic": ("Llama", {**rope("dynamic", factor=3.0), "max_position_embeddings": 12}),
    "llama_llama3": (
        "Llama",
        rope(
            "llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=3.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama_yarn": ("Llama", {"rope_parameters": {**YARN, "beta_fast": 16.0, "mscale": 1.0}}),
    "mistral": ("Mistral", WINDOWS),
    "mixtral": ("Mixtral", {"num_local_experts": 4, **WINDOWS}),
    "qwen2": (
        "Qwen2",
        {**WINDOWS, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", HEAD),
    "qwen2_moe": (
        "Qwen2Moe",
        {**EXPERTS, "shared_expert_intermediate_size": 20, "mlp_only_layers": [0]},
    ),
    "qwen2_moe_normed": (
        "Qwen2Moe",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 20,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, **HEAD, "norm_topk_prob": True}),
    "gemma": ("Gemma", HEAD),
    "gemma2": ("Gemma2", {**HEAD, **WINDOWS, "query_pre_attn_scalar": 12}),
    "gemma3_text": (
        "Gemma3Text",
        {
            **HEAD,
            **WINDOWS,
            "query_pre_attn_scalar": 12,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3", {**WINDOWS, "original_max_position_embeddings": 64}),
    "phi3_longrope": (
        "Phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.2],
                "long_factor": [1.0, 2.0, 3.5],
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "gpt_neox": ("GPTNeoX", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "gpt_neox_sequential": ("GPTNeoX", {"use_parallel_residual": False, "attention_bias": False}),
    "olmo2": ("Olmo2", {}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
            "logits_scaling": 4.0,
        },
    ),
    "glm": ("Glm", HEAD),
    "glm4": ("Glm4", HEAD),
    "deepseek_v2": ("DeepseekV2", {**LATENT, "topk_method": "greedy", "q_lora_rank": None}),
    "deepseek_v2_groups": (
        "DeepseekV2",
        {
            **LATENT,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.8},
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **LATENT,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v3_halves": (
        "DeepseekV3",
        {
            **{**LATENT, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
            **{"rope_interleave": False, "attention_bias": True, "num_nextn_predict_layers": 0},
        },
    ),
    "deepseek_v32": (
        "DeepseekV32",
        {
            **LATENT,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            "index_topk": 6,
            "index_n_heads": 16,
            "index_head_dim": 8,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "seed_oss": ("SeedOss", {**HEAD, "attention_dropout": 0.0, "residual_dropout": 0.0}),
    "smollm3": (
        "SmolLM3",
        {
            **WINDOWS,
            "use_sliding_window": True,
            "num_hidden_layers": 3,
            "no_rope_layers": [1, 0, 1],
        },
    ),
    "starcoder2": ("Starcoder2", WINDOWS),
    "exaone4": (
        "Exaone4",
        {**HEAD, **WINDOWS, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "ministral": (
        "Ministral",
        {**HEAD, **WINDOWS, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "ernie4_5": ("Ernie4_5", {"head_dim": 12}),
    "arcee": ("Arcee", {}),
    "nemotron": ("Nemotron", {}),
    "glm4_moe": ("Glm4Moe", GLM_EXPERTS),
    "stablelm": ("StableLm", {"rope_parameters": PARTIAL}),
    "stablelm_parallel": ("StableLm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "stablelm_norms": (
        "StableLm",
        {"qk_layernorm": True, "num_key_value_heads": 2, "rope_parameters": PARTIAL},
    ),
    "cohere_norms": ("Cohere", {"use_qk_norm": True, "logit_scale": 0.7}),
    "olmoe_clipped": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.4}),
    "falcon_alibi": ("Falcon", {"alibi": True, "bias": True}),
    "gpt_oss_steep": (
        "GptOss",
        {
            **{**HEAD, **WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2},
            **{"swiglu_limit": 1.5, "swiglu_alpha": 0.9},
            "rope_parameters": {**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
        },
    ),
    "falcon": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "cohere": ("Cohere", {"logit_scale": 0.7}),
    "cohere2": (
        "Cohere2",
        {
            **{**WINDOWS, "logit_scale": 1.5},
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "kimi_k2": (
        "DeepseekV3",
        {
            **{**LATENT, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0},
            "rope_parameters": {
                **{**YARN, "beta_fast": 1.0, "beta_slow": 1.0},
                **{"mscale": 1.0, "mscale_all_dim": 1.0},
            },
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            **HEAD,
            **WINDOWS,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "swiglu_limit": 1.5,
            "rope_parameters": {**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
        },
    ),
    "dots1": (
        "Dots1",
        {**GLM, **WINDOWS, "max_window_layers": 1, "norm_topk_prob": True, "attention_bias": True},
    ),
    "olmo3": (
        "Olmo3",
        {
            **WINDOWS,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "helium": ("Helium", HEAD),
    "internlm2": ("Llama", {"rms_norm_eps": 1e-5}),
    "olmo": ("Olmo", {"clip_qkv": 0.4}),
    "mpt": (
        "Mpt",
        {
            **{"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
            "attn_config": {"clip_qkv": 0.4},
        },
    ),
    "phi": ("Phi", {"rope_parameters": PARTIAL}),
    "opt": ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 32}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
    "qwen3_next": (
        "Qwen3Next",
        {
            **{**HEAD, **EXPERTS, "shared_expert_intermediate_size": 20},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 6},
            **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": PARTIAL,
        },
    ),
    "minimax_m2": (
        "MiniMaxM2",
        {
            **{**HEAD, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 4},
            "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "glm4_moe_lite": ("Glm4MoeLite", {**LATENT, "n_shared_experts": 1}),
    "glm_moe_dsa": (
        "GlmMoeDsa",
        {
            **{**LATENT, "n_shared_experts": 1, "num_hidden_layers": 3},
            **{"index_topk": 6, "index_n_heads": 16, "index_head_dim": 8},
            "indexer_types": ["full", "full", "shared"],
        },
    ),
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 12},
    ),
    "granitemoe": ("GraniteMoe", GRANITE_EXPERTS),
    "granitemoeshared": ("GraniteMoeShared", {**GRANITE_EXPERTS, "shared_intermediate_size": 20}),
    "exaone_moe": (
        "ExaoneMoe",
        {
            **{**HEAD, **WINDOWS, "layer_types": ["sliding_attention", "full_attention"]},
            **{"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
        },
    ),
    "solar_open": (
        "SolarOpen",
        {
            **{**HEAD, "n_routed_experts": 8, "num_experts_per_tok": 2},
            **{"moe_intermediate_size": 12, "routed_scaling_factor": 1.5},
        },
    ),
    "gptj": ("GPTJ", {**SMALL_GPT, "rotary_dim": 4}),
    "codegen": ("CodeGen", {**SMALL_GPT, "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeo",
        {
            **{"hidden_size": 32, "num_heads": 4, "num_layers": 2, "max_position_embeddings": 64},
            **{"window_size": 6, "attention_types": [[["global", "local"], 1]]},
        },
    ),
    "gpt_bigcode": ("GPTBigCode", SMALL_GPT),
    "persimmon": ("Persimmon", {}),
    "internlm3": ("InternLM3", {**HEAD, "attention_bias": True, "mlp_bias": True}),
    "jais2": ("Jais2", HEAD),
    "cwm": (
        "Cwm",
        {**HEAD, **WINDOWS, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "flex_olmo": ("FlexOlmo", {"num_experts": 4, "num_experts_per_tok": 2}),
    "hyperclovax": (
        "HyperCLOVAX",
        {
            **{"embedding_multiplier": 6.0, "residual_multiplier": 0.3},
            **{"attention_multiplier": 0.2, "logits_scaling": 0.25},
        },
    ),
}
