# SPDX-License-Identifier: Apache-2.0
"""EXAONE 4: norms behind the blocks, normalised queries and keys; its large model has windows in
most layers, and rotates in these alone.
"""  # noqa: D205 - two models

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import BEHIND, Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Heads
from mindspeed_ms.models.families.window import FULL, SLIDING, RotatedWindows


def _exaone4(layers: int, hidden: int, inner: int, heads: int, width: int) -> dict[str, Any]:
    is_large = layers == 64
    return {
        "model_type": "exaone4",
        "vocab_size": 102400,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": width,
        "sliding_window": 4096 if is_large else None,
        "layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 16 if is_large else [FULL] * layers,
        "max_position_embeddings": 131072 if is_large else 65536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 16.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        "tie_word_embeddings": not is_large,
        "bos_token_id": 1,
        "eos_token_id": 361,
    }


FAMILY = Family(
    name="exaone4",
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    fixed={
        **llama.FIXED,
        "model_config.qk_layernorm": True,
        "model_config.use_pre_norm": False,
        "model_config.use_sandwich_norm": True,
    },
    rules=llama.rules(
        RotatedWindows(rotates_without=True), heads=Heads(default_groups=32), epsilon=1e-5
    ),
    places=Decoder(norms=BEHIND),
    presets={
        "exaone4_1.2b": _exaone4(30, 2048, 4096, 32, 64),
        "exaone4_32b": _exaone4(64, 5120, 27392, 40, 128),
    },
)
