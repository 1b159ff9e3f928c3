# SPDX-License-Identifier: Apache-2.0
"""Helium: Llama whose neighbouring channels are rotated as pairs."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads

FAMILY = Family(
    name="helium",
    model_type="helium",
    architecture="HeliumForCausalLM",
    fixed={**llama.FIXED, "model_config.rotary_interleaved": True},
    rules=llama.rules(
        Biases("attention_bias", ("model_config.qkv_has_bias",)),
        Biases("mlp_bias", ("model_config.mlp_has_bias",)),
        heads=Heads(default_groups=20, default_width=128),
        rope=Rope(100000.0),
        epsilon=1e-8,
    ),
    places=Decoder(),
    presets={
        "helium1_preview_2b": {
            "model_type": "helium",
            "vocab_size": 48000,
            "num_hidden_layers": 24,
            "hidden_size": 2560,
            "intermediate_size": 7040,
            "num_attention_heads": 20,
            "num_key_value_heads": 20,
            "head_dim": 128,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-8,
            "rope_theta": 100000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
        }
    },
)
