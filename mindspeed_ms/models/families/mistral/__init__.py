# SPDX-License-Identifier: Apache-2.0
"""Mistral: Llama whose queries may see a window of the sequence only."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Heads
from mindspeed_ms.models.families.window import SlidingWindow

FAMILY = Family(
    name="mistral",
    model_type="mistral",
    architecture="MistralForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(SlidingWindow(4096), heads=Heads(default_groups=8)),
    places=Decoder(),
    presets={
        "mistral_7b": {
            "model_type": "mistral",
            "vocab_size": 32768,
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    },
)
