# SPDX-License-Identifier: Apache-2.0
"""ERNIE 4.5, its dense models: Llama that turns pairs of neighbours."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads

FAMILY = Family(
    name="ernie4_5",
    model_type="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    fixed={**llama.FIXED, "model_config.rotary_interleaved": True},
    rules=llama.rules(
        Biases("use_bias", llama.BIASES),
        heads=Heads(default_groups=2, default_width=128),
        rope=Rope(500000.0),
        epsilon=1e-5,
        is_tied=True,
    ),
    places=Decoder(),
    presets={
        "ernie4.5_0.3b": {
            "model_type": "ernie4_5",
            "vocab_size": 103424,
            "num_hidden_layers": 18,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    },
)
