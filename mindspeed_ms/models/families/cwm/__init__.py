# SPDX-License-Identifier: Apache-2.0
"""Code World Model: Llama 3 with windows in all layers but every fourth."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads
from mindspeed_ms.models.families.window import PatternOfWindows

_STRETCHING: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 16.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}

FAMILY = Family(
    name="cwm",
    model_type="cwm",
    architecture="CwmForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(
        Biases("mlp_bias", ("model_config.mlp_has_bias",)),
        PatternOfWindows(8192, 4, is_first_whole=True),
        heads=Heads(default_groups=8, default_width=128),
        rope=Rope(1000000.0, usual=_STRETCHING),
        epsilon=1e-5,
    ),
    places=Decoder(),
    neutral=frozenset({"pretraining_tp"}),
    presets={
        "cwm_32b": {
            "model_type": "cwm",
            "vocab_size": 128256,
            "num_hidden_layers": 64,
            "hidden_size": 6144,
            "intermediate_size": 21504,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "sliding_window": 8192,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "rope_scaling": _STRETCHING,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
        }
    },
)
