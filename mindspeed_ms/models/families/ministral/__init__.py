# SPDX-License-Identifier: Apache-2.0
"""Ministral: Mistral with windows in some of its layers."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Heads
from mindspeed_ms.models.families.window import FULL, SLIDING, PatternOfWindows

FAMILY = Family(
    name="ministral",
    model_type="ministral",
    architecture="MinistralForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(PatternOfWindows(4096, None), heads=Heads(default_groups=8)),
    places=Decoder(),
    presets={
        "ministral_8b": {
            "model_type": "ministral",
            "vocab_size": 131072,
            "num_hidden_layers": 36,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "sliding_window": 32768,
            "layer_types": [FULL, SLIDING, SLIDING, SLIDING] * 9,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    },
)
