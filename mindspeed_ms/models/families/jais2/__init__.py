# SPDX-License-Identifier: Apache-2.0
"""Jais 2: layer norms, biases everywhere, blocks without gates that square what is above 0."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Activation, Biases

FAMILY = Family(
    name="jais2",
    model_type="jais2",
    architecture="Jais2ForCausalLM",
    fixed={**llama.FIXED, "model_config.normalization": "LayerNorm"},
    rules=llama.rules(
        Biases("attention_bias", llama.BIASES[:2], True),
        Biases("mlp_bias", llama.BIASES[2:], True),
        activation=Activation(default="relu2", is_gated=False),
        epsilon=1e-5,
        epsilon_key="layer_norm_eps",
    ),
    places=Decoder(dense=("up_proj", "down_proj")),
    presets={
        "jais2_8b": {
            "model_type": "jais2",
            "vocab_size": 150272,
            "num_hidden_layers": 32,
            "hidden_size": 3328,
            "intermediate_size": 26624,
            "num_attention_heads": 26,
            "num_key_value_heads": 26,
            "head_dim": 128,
            "max_position_embeddings": 8192,
            "layer_norm_eps": 1e-5,
            "bos_token_id": 0,
            "eos_token_id": 150024,
        }
    },
)
