# SPDX-License-Identifier: Apache-2.0
"""HyperCLOVA X SEED Think: Granite with norms behind the blocks, too, and multiplied logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mindspeed_ms.models.families import granite
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.rules import Heads, Key, ScoreScale, reciprocal, with_rules


def _root(theirs: Mapping[str, Any]) -> float:
    """The reciprocal root of a head's width."""
    return float(Heads().read(theirs)["model_config.kv_channels"] ** -0.5)


FAMILY = replace(
    granite.FAMILY,
    name="hyperclovax",
    model_type="hyperclovax",
    architecture="HyperCLOVAXForCausalLM",
    rules=with_rules(
        granite.FAMILY.rules,
        Key("logits_scaling", "model_config.logits_scaling", 1.0, reciprocal, reciprocal),
        ScoreScale("attention_multiplier", _root),
        Key("use_post_norm", "model_config.use_sandwich_norm", True),
    ),
    places=Decoder(
        norms={
            "input_norm": "input_layernorm",
            "attn_post_norm": "post_norm1",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_post_norm": "post_norm2",
        }
    ),
    presets={
        "hyperclovax_seed_think_14b": {
            "model_type": "hyperclovax",
            "vocab_size": 110592,
            "num_hidden_layers": 38,
            "hidden_size": 6144,
            "intermediate_size": 14336,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "embedding_multiplier": 10.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 0.0078125,
            "logits_scaling": 0.125,
            "use_post_norm": True,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000000.0,
            "bos_token_id": 100257,
            "eos_token_id": 100257,
        }
    },
)
