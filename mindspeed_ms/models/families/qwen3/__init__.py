# SPDX-License-Identifier: Apache-2.0
"""Qwen 3: Llama whose queries and keys are normalised, head by head."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Heads
from mindspeed_ms.models.families.window import LateSlidingWindows


def _qwen3(layers: int, hidden: int, inner: int, heads: int, is_tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": is_tied,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }


FAMILY = Family(
    name="qwen3",
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fixed={**llama.FIXED, "model_config.qk_layernorm": True},
    rules=llama.rules(
        llama.ATTENTION_BIAS,
        LateSlidingWindows(),
        heads=Heads(default_groups=32, default_width=128),
    ),
    places=Decoder(),
    presets={
        "qwen3_0.6b": _qwen3(28, 1024, 3072, 16, True),
        "qwen3_1.7b": _qwen3(28, 2048, 6144, 16, True),
        "qwen3_8b": _qwen3(36, 4096, 12288, 32, False),
    },
)
