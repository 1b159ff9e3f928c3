# SPDX-License-Identifier: Apache-2.0
"""Nemotron 3 and 4, Minitron: layer norms whose factors are kept less 1, half of each head rotated,
blocks without gates that square what is above 0.
"""  # noqa: D205 - one sentence

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Activation, Biases

FAMILY = Family(
    name="nemotron",
    model_type="nemotron",
    architecture="NemotronForCausalLM",
    fixed={
        **llama.FIXED,
        "model_config.normalization": "LayerNorm",
        "model_config.layernorm_zero_centered_gamma": True,
    },
    rules=llama.rules(
        llama.ATTENTION_BIAS,
        Biases("mlp_bias", ("model_config.mlp_has_bias",)),
        activation=Activation(default="relu2", is_gated=False),
        rope=Rope(share=0.5),
        epsilon=1e-5,
        std=0.0134,
        epsilon_key="norm_eps",
    ),
    places=Decoder(dense=("up_proj", "down_proj")),
    presets={
        "minitron_4b": {
            "model_type": "nemotron",
            "vocab_size": 256000,
            "num_hidden_layers": 32,
            "hidden_size": 3072,
            "intermediate_size": 9216,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "hidden_act": "relu2",
            "max_position_embeddings": 4096,
            "norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
    },
)
