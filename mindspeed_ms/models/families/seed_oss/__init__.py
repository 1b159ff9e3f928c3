# SPDX-License-Identifier: Apache-2.0
"""Seed-OSS: Llama with biases of queries, keys and values, and with dropout."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Biases, Heads, Key

FAMILY = Family(
    name="seed_oss",
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(
        Biases("attention_bias", ("model_config.qkv_has_bias",), True),
        Biases("attention_out_bias", ("model_config.out_proj_has_bias",)),
        Biases("mlp_bias", ("model_config.mlp_has_bias",)),
        Key("attention_dropout", "model_config.attention_dropout_rate", 0.1, float),
        Key("residual_dropout", "model_config.hidden_dropout_rate", 0.1, float),
        heads=Heads(default_groups=8, default_width=128),
    ),
    places=Decoder(),
    neutral=frozenset({"pretraining_tp"}),
    presets={
        "seed_oss_36b": {
            "model_type": "seed_oss",
            "vocab_size": 155136,
            "num_hidden_layers": 64,
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_attention_heads": 80,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "attention_bias": True,
            "attention_out_bias": False,
            "max_position_embeddings": 524288,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000000.0,
            "bos_token_id": 0,
            "eos_token_id": 2,
        }
    },
)
