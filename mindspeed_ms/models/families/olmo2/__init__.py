# SPDX-License-Identifier: Apache-2.0
"""OLMo 2: norms behind the blocks instead of before them, queries and keys normalised whole."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import BEHIND, Decoder
from mindspeed_ms.models.families.family import Family

WHOLE_NORMS: dict[str, Any] = {
    "model_config.qk_layernorm": True,
    "model_config.qk_layernorm_full": True,
}


def _olmo2(layers: int, hidden: int, inner: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "olmo2",
        "vocab_size": 100352,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "eos_token_id": 100257,
    }


FAMILY = Family(
    name="olmo2",
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    fixed={
        **llama.FIXED,
        **WHOLE_NORMS,
        "model_config.use_pre_norm": False,
        "model_config.use_sandwich_norm": True,
    },
    rules=llama.rules(llama.ATTENTION_BIAS, epsilon=1e-5),
    places=Decoder(norms=BEHIND),
    presets={
        "olmo2_1b": _olmo2(16, 2048, 8192, 16),
        "olmo2_7b": _olmo2(32, 4096, 11008, 32),
    },
)
