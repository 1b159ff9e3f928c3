# SPDX-License-Identifier: Apache-2.0
"""Qwen 2 and 2.5: Llama with biases of queries, keys and values."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Heads
from mindspeed_ms.models.families.window import LateSlidingWindows


def _qwen2(layers: int, hidden: int, inner: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "vocab_size": 152064 if hidden >= 3584 else 151936,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": hidden < 3584,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    }


FAMILY = Family(
    name="qwen2",
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fixed={**llama.FIXED, "model_config.qkv_has_bias": True},
    rules=llama.rules(LateSlidingWindows(), heads=Heads(default_groups=32)),
    places=Decoder(),
    presets={
        "qwen2.5_0.5b": _qwen2(24, 896, 4864, 14, 2),
        "qwen2.5_1.5b": _qwen2(28, 1536, 8960, 12, 2),
        "qwen2.5_7b": _qwen2(28, 3584, 18944, 28, 4),
    },
)
