# SPDX-License-Identifier: Apache-2.0
"""StarCoder 2: layer norms, biases everywhere, blocks without gates, and a window."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Activation, Biases, Heads, Key
from mindspeed_ms.models.families.window import SlidingWindow


def _starcoder2(layers: int, hidden: int, inner: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "starcoder2",
        "vocab_size": 49152,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "sliding_window": 4096,
        "max_position_embeddings": 16384,
        "norm_epsilon": 1e-5,
        "rope_theta": 1000000.0 if layers == 32 else 999999.4420358813,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


FAMILY = Family(
    name="starcoder2",
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    fixed={**llama.FIXED, "model_config.normalization": "LayerNorm"},
    rules=llama.rules(
        Biases("use_bias", llama.BIASES, True),
        Key("residual_dropout", "model_config.hidden_dropout_rate", 0.0, float),
        SlidingWindow(),
        activation=Activation(default="gelu_pytorch_tanh", is_gated=False),
        heads=Heads(default_groups=2),
        epsilon=1e-5,
        std=0.018042,
        epsilon_key="norm_epsilon",
        is_tied=True,
    ),
    places=Decoder(dense=("c_fc", "c_proj")),
    neutral=frozenset({"embedding_dropout"}),
    presets={
        "starcoder2_3b": _starcoder2(30, 3072, 12288, 24, 2),
        "starcoder2_7b": _starcoder2(32, 4608, 18432, 36, 4),
    },
)
