# SPDX-License-Identifier: Apache-2.0
"""The first OLMo: Llama with layer norms that have no parameters."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Heads, Key

_EPSILON = "rms_norm_eps"


def _olmo(layers: int, hidden: int, inner: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "olmo",
        "vocab_size": 50304,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "eos_token_id": 50279,
        "pad_token_id": 1,
        **more,
    }


FAMILY = Family(
    name="olmo",
    model_type="olmo",
    architecture="OlmoForCausalLM",
    fixed={
        **llama.FIXED,
        "model_config.normalization": "LayerNorm",
        "model_config.norm_has_factor": False,
        "model_config.norm_epsilon": 1e-5,
    },
    rules=tuple(
        rule
        for rule in llama.rules(
            llama.ATTENTION_BIAS,
            Key("clip_qkv", "model_config.clip_qkv", None),
            heads=Heads(width=None),
            epsilon_key=_EPSILON,
        )
        if _EPSILON not in rule.keys  # noqa: SIM118 - it is a set of a rule, no mapping
    ),
    places=Decoder(),
    presets={
        "olmo_1b": _olmo(16, 2048, 8192, 16, tie_word_embeddings=True),
        "olmo_7b": _olmo(32, 4096, 11008, 32),
        "olmo1.7_7b": _olmo(32, 4096, 11008, 32, clip_qkv=8.0, max_position_embeddings=4096),
    },
)
