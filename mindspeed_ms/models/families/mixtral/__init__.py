# SPDX-License-Identifier: Apache-2.0
"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.expert_rules import BALANCE, JITTER, Normed
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Heads, Key
from mindspeed_ms.models.families.window import SlidingWindow

FAMILY = Family(
    name="mixtral",
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(
        Key("intermediate_size", "moe_config.moe_ffn_hidden_size"),
        Key("num_local_experts", "moe_config.num_experts", 8),
        Key("num_experts_per_tok", "moe_config.moe_router_topk", 2),
        BALANCE,
        JITTER,
        Normed(None),
        SlidingWindow(),
        heads=Heads(default_groups=8),
        rope=Rope(1000000.0),
        epsilon=1e-5,
    ),
    places=Decoder(block="block_sparse_moe", expert=("w1", "w3", "w2")),
    neutral=frozenset({"output_router_logits"}),
    presets={
        "mixtral_8x7b": {
            "model_type": "mixtral",
            "vocab_size": 32000,
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    },
)
