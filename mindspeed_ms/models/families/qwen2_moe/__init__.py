# SPDX-License-Identifier: Apache-2.0
"""Qwen 1.5 and 2 with experts: one beside them that every token passes, weighed by a gate."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.expert_rules import BALANCE, NORMED, SparseSteps, experts
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Biases, Heads, Key
from mindspeed_ms.models.families.window import LateSlidingWindows

FAMILY = Family(
    name="qwen2_moe",
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    fixed={**llama.FIXED, "moe_config.moe_shared_expert_gate": True},
    rules=llama.rules(
        *experts("num_experts"),
        Key(
            "shared_expert_intermediate_size",
            "moe_config.moe_shared_expert_intermediate_size",
            5632,
        ),
        Biases("qkv_bias", ("model_config.qkv_has_bias",), True),
        NORMED,
        BALANCE,
        SparseSteps(),
        LateSlidingWindows(),
        heads=Heads(default_groups=16),
    ),
    places=Decoder(shared="shared_expert"),
    neutral=frozenset({"output_router_logits"}),
    presets={
        "qwen1.5_moe_a2.7b": {
            "model_type": "qwen2_moe",
            "vocab_size": 151936,
            "num_hidden_layers": 24,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
        }
    },
)
