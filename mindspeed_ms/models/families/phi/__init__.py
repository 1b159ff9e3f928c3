# SPDX-License-Identifier: Apache-2.0
"""Phi 1, 1.5 and 2: blocks side by side behind one norm, biases everywhere, in the head too."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Activation, Heads, Key


def _phi(layers: int, hidden: int, share: float) -> dict[str, Any]:
    return {
        "model_type": "phi",
        "vocab_size": 51200,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "partial_rotary_factor": share,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }


FAMILY = Family(
    name="phi",
    model_type="phi",
    architecture="PhiForCausalLM",
    fixed={
        **llama.FIXED,
        **dict.fromkeys(llama.BIASES, True),
        "model_config.normalization": "LayerNorm",
        "model_config.use_parallel_residual": True,
        "model_config.shares_input_norm": True,
        "model_config.head_has_bias": True,
    },
    rules=llama.rules(
        Key("resid_pdrop", "model_config.hidden_dropout_rate", 0.0, float),
        Key("qk_layernorm", "model_config.qk_layernorm", False),
        activation=Activation(default="gelu_new", is_gated=False, tanh="gelu_new"),
        heads=Heads(width=None),
        rope=Rope(share=0.5),
        epsilon=1e-5,
        epsilon_key="layer_norm_eps",
    ),
    places=Decoder(
        query_words=("q_proj", "k_proj", "v_proj", "dense"),
        query_norms=("q_layernorm", "k_layernorm"),
        dense=("fc1", "fc2"),
        final="final_layernorm",
    ),
    neutral=frozenset({"embd_pdrop"}),
    presets={
        "phi1": _phi(24, 2048, 0.5),
        "phi1.5": _phi(24, 2048, 0.5),
        "phi2": _phi(32, 2560, 0.4),
    },
)
