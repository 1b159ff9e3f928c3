# SPDX-License-Identifier: Apache-2.0
"""Persimmon: layer norms of queries and keys, half of each head rotated, blocks without gates that
square what is above 0, biases everywhere.
"""  # noqa: D205 - one sentence

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Activation, Heads, Key

FAMILY = Family(
    name="persimmon",
    model_type="persimmon",
    architecture="PersimmonForCausalLM",
    fixed={
        **llama.FIXED,
        **dict.fromkeys(llama.BIASES, True),
        "model_config.normalization": "LayerNorm",
    },
    rules=llama.rules(
        Key("hidden_dropout", "model_config.hidden_dropout_rate", 0.0, float),
        Key("qk_layernorm", "model_config.qk_layernorm", True),
        activation=Activation(default="relu2", is_gated=False),
        heads=Heads(groups=None, width=None),
        rope=Rope(share=0.5),
        epsilon=1e-5,
        epsilon_key="layer_norm_eps",
    ),
    places=Decoder(
        query_words=("q_proj", "k_proj", "v_proj", "dense"),
        query_norms=("q_layernorm", "k_layernorm"),
        mixed="query_key_value",
        is_grouped=True,
        dense=("dense_h_to_4h", "dense_4h_to_h"),
        final="final_layernorm",
    ),
    presets={
        "persimmon_8b": {
            "model_type": "persimmon",
            "vocab_size": 262144,
            "num_hidden_layers": 36,
            "hidden_size": 4096,
            "intermediate_size": 16384,
            "num_attention_heads": 64,
            "max_position_embeddings": 16384,
            "rope_theta": 25000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    },
)
