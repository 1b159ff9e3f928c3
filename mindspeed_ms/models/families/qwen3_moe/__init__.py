# SPDX-License-Identifier: Apache-2.0
"""Qwen 3 with experts."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.expert_rules import BALANCE, NORMED, SparseSteps, experts
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Heads
from mindspeed_ms.models.families.window import LateSlidingWindows

FAMILY = Family(
    name="qwen3_moe",
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fixed={**llama.FIXED, "model_config.qk_layernorm": True},
    rules=llama.rules(
        *experts("num_experts"),
        llama.ATTENTION_BIAS,
        NORMED,
        BALANCE,
        SparseSteps(),
        LateSlidingWindows(first=0),
        heads=Heads(default_groups=4),
    ),
    places=Decoder(),
    neutral=frozenset({"output_router_logits"}),
    presets={
        "qwen3_30b_a3b": {
            "model_type": "qwen3_moe",
            "vocab_size": 151936,
            "num_hidden_layers": 48,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        }
    },
)
