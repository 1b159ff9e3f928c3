# SPDX-License-Identifier: Apache-2.0
"""FlexOlmo: experts like those of OLMoE between the norms of OLMo 2."""

from __future__ import annotations

from dataclasses import replace

from mindspeed_ms.models.families import olmo2, olmoe
from mindspeed_ms.models.families.decoder import BEHIND, Decoder
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Key, with_rules

FAMILY = replace(
    olmoe.FAMILY,
    name="flex_olmo",
    model_type="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    fixed=olmo2.FAMILY.fixed,
    rules=with_rules(
        tuple(rule for rule in olmoe.FAMILY.rules if "clip_qkv" not in rule.keys),
        Rope(500000.0),
        Key("rms_norm_eps", "model_config.norm_epsilon", 1e-6, float),
    ),
    places=Decoder(norms=BEHIND),
    presets={
        "flex_olmo_7x7b": {
            "model_type": "flex_olmo",
            "vocab_size": 100352,
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_experts": 7,
            "num_experts_per_tok": 5,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 500000.0,
            "eos_token_id": 100257,
            "pad_token_id": 100277,
        }
    },
)
