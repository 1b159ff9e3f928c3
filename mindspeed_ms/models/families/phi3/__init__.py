# SPDX-License-Identifier: Apache-2.0
"""Phi 3 and 4: Llama with one matrix for queries, keys and values, and one for gate and up."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Key
from mindspeed_ms.models.families.window import SlidingWindow

FAMILY = Family(
    name="phi3",
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    fixed={**llama.FIXED},
    rules=llama.rules(
        SlidingWindow(),
        Key("resid_pdrop", "model_config.hidden_dropout_rate", 0.0, float),
        rope=Rope(share=1.0),
        epsilon=1e-5,
    ),
    places=Decoder(mixed="qkv_proj", dense=("gate_up_proj", "down_proj")),
    neutral=frozenset({"embd_pdrop", "original_max_position_embeddings", "attention_bias"}),
    presets={
        "phi3_mini": {
            "model_type": "phi3",
            "vocab_size": 32064,
            "num_hidden_layers": 32,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "sliding_window": 2047,
            "bos_token_id": 1,
            "eos_token_id": 32000,
        }
    },
)
