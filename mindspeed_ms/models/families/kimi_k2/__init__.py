# SPDX-License-Identifier: Apache-2.0
"""Kimi K2: DeepSeek V3 under a name of its own."""

from __future__ import annotations

from dataclasses import replace

from mindspeed_ms.models.families import deepseek_v3

FAMILY = replace(
    deepseek_v3.FAMILY,
    name="kimi_k2",
    model_type="kimi_k2",
    presets={
        "kimi_k2": {
            **deepseek_v3.FAMILY.presets["deepseek_v3"],
            "model_type": "kimi_k2",
            "vocab_size": 163840,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "n_routed_experts": 384,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.827,
            "num_nextn_predict_layers": 0,
            "max_position_embeddings": 131072,
            "rope_theta": 50000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 1.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
            "bos_token_id": 163584,
            "eos_token_id": 163585,
        }
    },
)
