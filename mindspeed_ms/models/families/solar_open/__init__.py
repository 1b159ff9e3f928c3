# SPDX-License-Identifier: Apache-2.0
"""Solar Open: Llama's attention before experts as in GLM-4.5, in every layer."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.deepseek_v2 import scaling
from mindspeed_ms.models.families.deepseek_v3 import SIGMOID
from mindspeed_ms.models.families.expert_rules import Groups, Normed, Shared, experts
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads

_RULES = llama.rules(
    *experts("n_routed_experts"),
    Shared(1),
    Groups(2),
    Normed(default=True, has_single_scores=True),
    scaling(1.0),
    Biases("attention_bias", ("model_config.qkv_has_bias",)),
    heads=Heads(default_groups=8, default_width=128),
    rope=Rope(1000000.0),
    epsilon=1e-5,
)

FAMILY = Family(
    name="solar_open",
    model_type="solar_open",
    architecture="SolarOpenForCausalLM",
    fixed={**llama.FIXED, **SIGMOID},
    rules=tuple(rule for rule in _RULES if "intermediate_size" not in rule.keys),
    places=Decoder(),
    neutral=frozenset({"output_router_logits", "router_aux_loss_coef"}),
    presets={
        "solar_open_100b": {
            "model_type": "solar_open",
            "vocab_size": 196608,
            "num_hidden_layers": 48,
            "hidden_size": 4096,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 1280,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
        }
    },
)
