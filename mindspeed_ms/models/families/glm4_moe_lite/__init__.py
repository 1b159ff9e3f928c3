# SPDX-License-Identifier: Apache-2.0
"""GLM-4.7 Flash: DeepSeek V3 whose experts are not in groups."""

from __future__ import annotations

from dataclasses import replace

from mindspeed_ms.models.families import deepseek_v3
from mindspeed_ms.models.families.deepseek_v2 import narrow_queries, scaling
from mindspeed_ms.models.families.expert_rules import Groups, ListedBlocks
from mindspeed_ms.models.families.rules import Key, with_rules

FAMILY = replace(
    deepseek_v3.FAMILY,
    name="glm4_moe_lite",
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    rules=with_rules(
        deepseek_v3.FAMILY.rules,
        narrow_queries(768),
        scaling(1.8),
        Groups(2, usual=(1, 1)),
        ListedBlocks(1),
        Key("rms_norm_eps", "model_config.norm_epsilon", 1e-5, float),
    ),
    presets={
        "glm4.7_flash": {
            "model_type": "glm4_moe_lite",
            "vocab_size": 154880,
            "num_hidden_layers": 47,
            "hidden_size": 2048,
            "intermediate_size": 10240,
            "num_attention_heads": 20,
            "num_key_value_heads": 20,
            "q_lora_rank": 768,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 192,
            "qk_rope_head_dim": 64,
            "v_head_dim": 256,
            "n_routed_experts": 64,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1536,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.8,
            "num_nextn_predict_layers": 1,
            "max_position_embeddings": 202752,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "eos_token_id": [154820, 154827, 154829],
            "pad_token_id": 154820,
        }
    },
)
