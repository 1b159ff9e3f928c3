# SPDX-License-Identifier: Apache-2.0
"""OLMoE: experts whose weights do not sum to 1, queries and keys normalised whole."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.expert_rules import NORMED, experts
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.olmo2 import WHOLE_NORMS
from mindspeed_ms.models.families.rules import Key

FAMILY = Family(
    name="olmoe",
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    fixed={**llama.FIXED, **WHOLE_NORMS},
    rules=llama.rules(
        *experts("num_experts", "intermediate_size"),
        NORMED,
        Key("router_aux_loss_coef", "moe_config.moe_aux_loss_coeff", 0.01, float),
        llama.ATTENTION_BIAS,
        Key("clip_qkv", "model_config.clip_qkv", None),
        epsilon=1e-5,
    ),
    places=Decoder(),
    neutral=frozenset({"output_router_logits"}),
    presets={
        "olmoe_1b_7b": {
            "model_type": "olmoe",
            "vocab_size": 50304,
            "num_hidden_layers": 16,
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "eos_token_id": 50279,
        }
    },
)
