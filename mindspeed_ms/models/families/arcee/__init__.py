# SPDX-License-Identifier: Apache-2.0
"""Arcee's AFM: Llama whose blocks have no gates and square what is above 0."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Activation, Biases

FAMILY = Family(
    name="arcee",
    model_type="arcee",
    architecture="ArceeForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(
        llama.ATTENTION_BIAS,
        Biases("mlp_bias", ("model_config.mlp_has_bias",)),
        activation=Activation(default="relu2", is_gated=False),
        epsilon=1e-5,
    ),
    places=Decoder(dense=("up_proj", "down_proj")),
    presets={
        "afm_4.5b": {
            "model_type": "arcee",
            "vocab_size": 128004,
            "num_hidden_layers": 36,
            "hidden_size": 2560,
            "intermediate_size": 18432,
            "num_attention_heads": 20,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "hidden_act": "relu2",
            "max_position_embeddings": 65536,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 20.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": True,
            },
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        }
    },
)
