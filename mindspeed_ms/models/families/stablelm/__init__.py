# SPDX-License-Identifier: Apache-2.0
"""StableLM: Llama with layer norms, a part of each head rotated; some with blocks side by side."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads, Key, Only

FAMILY = Family(
    name="stablelm",
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    fixed={**llama.FIXED, "model_config.normalization": "LayerNorm"},
    rules=llama.rules(
        Biases("use_qkv_bias", ("model_config.qkv_has_bias",)),
        Biases(
            "use_parallel_residual",
            ("model_config.use_parallel_residual", "model_config.shares_input_norm"),
        ),
        Only("qk_layernorm", (False,), False),
        Key("hidden_dropout", "model_config.hidden_dropout_rate", 0.0, float),
        heads=Heads(width=None, default_groups=32),
        rope=Rope(share=0.25),
        epsilon=1e-5,
        epsilon_key="layer_norm_eps",
    ),
    places=Decoder(),
    presets={
        "stablelm2_1.6b": {
            "model_type": "stablelm",
            "vocab_size": 100352,
            "num_hidden_layers": 24,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "use_qkv_bias": True,
            "max_position_embeddings": 4096,
            "partial_rotary_factor": 0.25,
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": 100257,
            "eos_token_id": 100257,
        }
    },
)
