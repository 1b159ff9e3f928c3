# SPDX-License-Identifier: Apache-2.0
"""Settings that are legal and rare, of which ``record_families.py`` records tiny models too."""

from __future__ import annotations

from typing import Any

from family_settings import EXPERTS, GLM, GLM_EXPERTS, HEAD, LATENT, WINDOWS, YARN

UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_tied_odd": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "vocab_size": 53,
            "head_dim": 20,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-3,
            "hidden_act": "gelu",
        },
    ),
    "llama_yarn_factor": ("Llama", {"rope_parameters": {**YARN, "attention_factor": 0.7}}),
    "gpt2_untied": (
        "GPT2",
        {
            **{"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_inner": 37},
            **{"tie_word_embeddings": False, "activation_function": "gelu", "vocab_size": 51},
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "gpt2_relu": (
        "GPT2",
        {
            **{"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
            "activation_function": "relu",
        },
    ),
    "gpt2_silu": (
        "GPT2",
        {
            **{"n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 64},
            "activation_function": "silu",
        },
    ),
    "deepseek_v2_linear": (
        "DeepseekV2",
        {
            **{**LATENT, "topk_method": "greedy"},
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        },
    ),
    "llama_longrope_above": (
        "Llama",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 2.0, 3.5, 4.0],
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama_relu": ("Llama", {"hidden_act": "relu", "mlp_bias": True}),
    "mixtral_relu": ("Mixtral", {"num_local_experts": 4, "hidden_act": "relu"}),
    "nemotron_relu": ("Nemotron", {**HEAD, "hidden_act": "relu"}),
    "gpt2_scales": (
        "GPT2",
        {
            **{"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64},
            **{"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        },
    ),
    "gpt2_without_root": (
        "GPT2",
        {
            **{"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
            **{"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
        },
    ),
    "mixtral_jitter": (
        "Mixtral",
        {"num_local_experts": 3, "router_jitter_noise": 0.1, "head_dim": 12},
    ),
    "qwen2_types": (
        "Qwen2",
        {
            **{**WINDOWS, "use_sliding_window": True, "tie_word_embeddings": True},
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen3_moe_mixed": (
        "Qwen3Moe",
        {
            **{**EXPERTS, "head_dim": 12, "num_hidden_layers": 3, "mlp_only_layers": [1]},
            **{"norm_topk_prob": False, "attention_bias": True, "tie_word_embeddings": True},
        },
    ),
    "gemma2_without_caps": (
        "Gemma2",
        {
            **{**HEAD, **WINDOWS, "query_pre_attn_scalar": 7, "attention_bias": True},
            **{"final_logit_softcapping": None, "attn_logit_softcapping": None},
        },
    ),
    "gemma3_text_rope": (
        "Gemma3Text",
        {
            **{**HEAD, **WINDOWS, "num_hidden_layers": 3, "final_logit_softcapping": 7.0},
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3_factor": (
        "Phi3",
        {
            "sliding_window": 5,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                **{"rope_type": "longrope", "rope_theta": 1e4, "attention_factor": 1.3},
                **{"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.5, 4.0]},
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "gpt_neox_tied": (
        "GPTNeoX",
        {
            **{"tie_word_embeddings": True, "hidden_act": "gelu_new", "intermediate_size": 50},
            "rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 1.0},
            "vocab_size": 51,
        },
    ),
    "olmo2_biases": (
        "Olmo2",
        {"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": {**YARN}},
    ),
    "olmoe_normed": (
        "Olmoe",
        {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "granite_biases": (
        "Granite",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "glm4_biases": ("Glm4", {**HEAD, "attention_bias": True, "tie_word_embeddings": True}),
    "deepseek_v3_dense": (
        "DeepseekV3",
        {**LATENT, "q_lora_rank": None, "first_k_dense_replace": 2, "n_group": 1, "topk_group": 1},
    ),
    "deepseek_v3_uneven_groups": (
        "DeepseekV3",
        {
            **{**LATENT, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
            "rms_norm_eps": 1e-2,
        },
    ),
    "deepseek_v3_single": (
        "DeepseekV3",
        {
            **{**LATENT, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 1},
            **{"q_lora_rank": None, "rope_interleave": False},
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v2_biases": (
        "DeepseekV2",
        {**LATENT, "topk_method": "greedy", "attention_bias": True, "norm_topk_prob": True},
    ),
    "mixtral_single": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 1}),
    "qwen3_moe_single": (
        "Qwen3Moe",
        {**EXPERTS, **HEAD, "num_experts_per_tok": 1, "norm_topk_prob": True},
    ),
    "seed_oss_biases": (
        "SeedOss",
        {
            **{"head_dim": 12, "attention_bias": False, "attention_out_bias": True},
            **{"mlp_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"},
        },
    ),
    "smollm3_plain": (
        "SmolLM3",
        {
            **{"no_rope_layer_interval": 2, "num_hidden_layers": 4, "attention_bias": True},
            **{"mlp_bias": True, "tie_word_embeddings": False},
            "rope_parameters": {**YARN},
        },
    ),
    "starcoder2_plain": (
        "Starcoder2",
        {
            **{"use_bias": False, "tie_word_embeddings": False, "norm_epsilon": 1e-3},
            **{"hidden_act": "gelu", "num_key_value_heads": 1},
        },
    ),
    "exaone4_full": (
        "Exaone4",
        {
            **{"sliding_window": None, "layer_types": ["full_attention"] * 2},
            **{"tie_word_embeddings": True, "num_key_value_heads": 4},
            "rope_parameters": {
                **{"rope_type": "llama3", "rope_theta": 1e4, "factor": 16.0},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "exaone4_pattern": (
        "Exaone4",
        {**WINDOWS, "sliding_window_pattern": 3, "num_hidden_layers": 4},
    ),
    "exaone4_unrotated": ("Exaone4", {**WINDOWS, "layer_types": ["full_attention"] * 2}),
    "ministral_all": ("Ministral", {**HEAD, **WINDOWS, "tie_word_embeddings": True}),
    "ernie4_5_biases": (
        "Ernie4_5",
        {"use_bias": True, "tie_word_embeddings": False, "rms_norm_eps": 1e-3},
    ),
    "arcee_biases": (
        "Arcee",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "hidden_act": "gelu",
            "rope_parameters": {**YARN},
        },
    ),
    "nemotron_biases": (
        "Nemotron",
        {
            **{"attention_bias": True, "mlp_bias": True, "head_dim": 12, "norm_eps": 1e-3},
            **{"tie_word_embeddings": True, "hidden_act": "silu"},
            "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0},
        },
    ),
    "glm4_moe_groups": (
        "Glm4Moe",
        {
            **{**GLM_EXPERTS, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
            **{"use_qk_norm": True, "attention_bias": False, "norm_topk_prob": False},
            **{"n_shared_experts": 2, "num_nextn_predict_layers": 0, "first_k_dense_replace": 0},
        },
    ),
    "dots1_scores": (
        "Dots1",
        {**GLM, "sliding_window": None, "n_shared_experts": 2, "tie_word_embeddings": True},
    ),
    "olmo3_pattern": ("Olmo3", {**WINDOWS, "num_hidden_layers": 4, "attention_bias": True}),
    "helium_biases": (
        "Helium",
        {**HEAD, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "bloom_late": (
        "Bloom",
        {
            **{"n_layer": 2, "n_head": 6, "hidden_size": 24, "tie_word_embeddings": False},
            **{"apply_residual_connection_post_layernorm": True, "vocab_size": 51},
        },
    ),
    "smollm3_lists": (
        "SmolLM3",
        {
            **{**WINDOWS, "use_sliding_window": True, "no_rope_layers": [0, 1]},
            **{"layer_types": ["full_attention", "sliding_attention"], "attention_bias": True},
            **{"mlp_bias": True, "tie_word_embeddings": False},
        },
    ),
    "stablelm_dropouts": (
        "StableLm",
        {
            **{"hidden_dropout": 0.1, "attention_dropout": 0.1, "layer_norm_eps": 1e-3},
            **{"tie_word_embeddings": True, "num_key_value_heads": 1},
            "rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 0.5},
        },
    ),
    "falcon_sequential": (
        "Falcon",
        {
            **{"multi_query": False, "parallel_attn": False, "bias": True},
            **{"tie_word_embeddings": False, "ffn_hidden_size": 52},
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            "max_position_embeddings": 12,
        },
    ),
    "falcon_one_norm": (
        "Falcon",
        {
            **{"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "bias": True},
            **{"num_kv_heads": 2, "activation": "gelu_new"},
        },
    ),
    "falcon_single": ("Falcon", {}),
    "falcon_heads": ("Falcon", {"multi_query": False, "layer_norm_epsilon": 1e-3}),
    "bloom_post_norm": (
        "Bloom",
        {
            **{"hidden_size": 24, "n_head": 6, "n_layer": 2, "layer_norm_epsilon": 1e-3},
            **{"apply_residual_connection_post_layernorm": True, "tie_word_embeddings": False},
        },
    ),
    "cohere_biases": (
        "Cohere",
        {
            **{"attention_bias": True, "logit_scale": 0.3, "tie_word_embeddings": False},
            "layer_norm_eps": 1e-3,
        },
    ),
    "cohere2_pattern": (
        "Cohere2",
        {**WINDOWS, "num_hidden_layers": 4, "attention_bias": True, "logit_scale": 1.0},
    ),
    "gpt_oss_plain": (
        "GptOss",
        {
            **{"head_dim": 12, **WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 4},
            **{"attention_bias": False, "rope_parameters": {"rope_type": "default"}},
        },
    ),
}
"""Settings that are legal and rare."""
