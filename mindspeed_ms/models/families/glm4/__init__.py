# SPDX-License-Identifier: Apache-2.0
"""GLM-4: half of each head rotated in pairs of neighbours; from version 0414 norms on both sides of
each block (``glm4``), before it without (``glm``).
"""  # noqa: D205 - two models

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import NORMS, Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads

FIXED: dict[str, Any] = {**llama.FIXED, "model_config.rotary_interleaved": True}
RULES = llama.rules(
    Biases("attention_bias", ("model_config.qkv_has_bias",), True),
    heads=Heads(default_groups=2, default_width=128),
    rope=Rope(share=0.5),
    epsilon=1.5625e-7,
)
DENSE = ("gate_up_proj", "down_proj")


def _glm(model_type: str, layers: int, hidden: int, inner: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": 151552,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072 if model_type == "glm" else 32768,
        "rms_norm_eps": 1.5625e-7 if model_type == "glm" else 1e-5,
        "attention_bias": model_type == "glm",
        "partial_rotary_factor": 0.5,
        "eos_token_id": [151329, 151336, 151338],
    }


GLM = Family(
    name="glm",
    model_type="glm",
    architecture="GlmForCausalLM",
    fixed=FIXED,
    rules=RULES,
    places=Decoder(dense=DENSE),
    presets={"glm4_9b_chat": _glm("glm", 40, 4096, 13696, 32)},
)

FAMILY = Family(
    name="glm4",
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    fixed={**FIXED, "model_config.use_sandwich_norm": True},
    rules=RULES,
    places=Decoder(
        norms={
            **NORMS,
            "attn_post_norm": "post_self_attn_layernorm",
            "ffn_post_norm": "post_mlp_layernorm",
        },
        dense=DENSE,
    ),
    presets={"glm4_9b_0414": _glm("glm4", 40, 4096, 13696, 32)},
)
