# SPDX-License-Identifier: Apache-2.0
"""Command R: blocks side by side behind one norm without biases, scaled logits; version 7 has
windows in most layers, and rotates in these alone.
"""  # noqa: D205 - two models

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Heads, Key, Rule, norms_of_heads, reciprocal
from mindspeed_ms.models.families.window import RotatedWindows

FIXED: dict[str, Any] = {
    **llama.FIXED,
    "model_config.normalization": "LayerNorm",
    "model_config.norm_has_bias": False,
    "model_config.use_parallel_residual": True,
    "model_config.shares_input_norm": True,
    "model_config.rotary_interleaved": True,
}


def _rules(base: float, heads: Heads, *more: Rule) -> tuple[Rule, ...]:
    return llama.rules(
        llama.ATTENTION_BIAS,
        Key("logit_scale", "model_config.logits_scaling", 0.0625, reciprocal, reciprocal),
        *more,
        heads=heads,
        rope=Rope(base),
        epsilon=1e-5,
        epsilon_key="layer_norm_eps",
        is_tied=True,
    )


def _cohere(model_type: str, layers: int, hidden: int, heads: int, groups: int) -> dict[str, Any]:
    is_second = model_type == "cohere2"
    return {
        "model_type": model_type,
        "vocab_size": 256000,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": 14336 if is_second else 22528,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "logit_scale": 0.25 if is_second else 0.0625,
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "rope_theta": 50000.0 if is_second else 8000000.0,
        "bos_token_id": 5,
        "eos_token_id": 255001,
    }


COHERE = Family(
    name="cohere",
    model_type="cohere",
    architecture="CohereForCausalLM",
    fixed=FIXED,
    rules=_rules(500000.0, Heads(), norms_of_heads("use_qk_norm")),
    places=Decoder(has_rows_of_heads=True),
    neutral=frozenset({"pretraining_tp"}),
    presets={"command_r": _cohere("cohere", 40, 8192, 64, 64)},
)

FAMILY = Family(
    name="cohere2",
    model_type="cohere2",
    architecture="Cohere2ForCausalLM",
    fixed=FIXED,
    rules=_rules(10000.0, Heads(width=None), RotatedWindows(rotates_without=False)),
    places=Decoder(),
    neutral=frozenset(
        {"cache_implementation", "head_dim", "order_of_interleaved_layers", "rotary_pct"}
    ),
    presets={"command_r7b": _cohere("cohere2", 32, 4096, 32, 8)},
)
