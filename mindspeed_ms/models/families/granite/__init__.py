# SPDX-License-Identifier: Apache-2.0
"""Granite 3: Llama with multipliers of embedding, blocks, scores and logits."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Biases, Key, Rule, ScoreScale

MULTIPLIERS: tuple[Rule, ...] = (
    Key("embedding_multiplier", "model_config.embedding_multiplier", 1.0, float),
    Key("residual_multiplier", "model_config.residual_multiplier", 1.0, float),
    Key("logits_scaling", "model_config.logits_scaling", 1.0, float),
    ScoreScale("attention_multiplier", 1.0),
)

FAMILY = Family(
    name="granite",
    model_type="granite",
    architecture="GraniteForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(
        llama.ATTENTION_BIAS,
        Biases("mlp_bias", ("model_config.mlp_has_bias",)),
        *MULTIPLIERS,
    ),
    places=Decoder(),
    presets={
        "granite3_2b": {
            "model_type": "granite",
            "vocab_size": 49155,
            "num_hidden_layers": 40,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.015625,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
    },
)
