# SPDX-License-Identifier: Apache-2.0
"""Gemma 2: norms on both sides of each block, capped scores and logits, a window in every second
layer; and Gemma, its ancestor without these.
"""  # noqa: D205 - two models

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import SANDWICH, Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import (
    Activation,
    Fields,
    Follows,
    Heads,
    Key,
    Only,
    Rule,
    ScoreScale,
    value_of,
)
from mindspeed_ms.models.families.window import PatternOfWindows

FIXED: dict[str, Any] = {**llama.FIXED, "model_config.layernorm_zero_centered_gamma": True}
TANH = "gelu_pytorch_tanh"

SHARED: tuple[Rule, ...] = (
    llama.ATTENTION_BIAS,
    Follows(
        "model_config.embedding_multiplier",
        lambda theirs: math.sqrt(value_of(theirs, "hidden_size")),
    ),
    Only("use_bidirectional_attention", (None, False)),
)
"""Of every Gemma."""


def _optional(number: float | None) -> float | None:
    return None if number is None else float(number)


def cap(key: str, default: float | None) -> Key:
    """The key of a bound on logits, whose null means that there is none."""
    return Key(key, f"model_config.{key}", default, _optional, is_nullable=True)


def _gemma2(layers: int, hidden: int, inner: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": 128 if hidden == 4608 else 256,
        "query_pre_attn_scalar": 144 if hidden == 4608 else 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_activation": TANH,
        "max_position_embeddings": 8192,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }


@dataclass(frozen=True, slots=True)
class GemmaActivation(Activation):
    """The first files say "gelu" and mean the tanh form, as ``transformers`` takes it."""

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The activation."""
        if theirs.get(self.theirs) == "gelu":
            theirs = {**theirs, self.theirs: TANH}
        return Activation.read(self, theirs)


GEMMA = Family(
    name="gemma",
    model_type="gemma",
    architecture="GemmaForCausalLM",
    fixed=FIXED,
    rules=llama.rules(
        *SHARED,
        Only("hidden_activation", (None, TANH)),
        activation=GemmaActivation(default=TANH),
        heads=Heads(default_groups=16, default_width=256),
        is_tied=True,
    ),
    places=Decoder(),
    presets={
        "gemma_2b": {
            "model_type": "gemma",
            "vocab_size": 256000,
            "num_hidden_layers": 18,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "bos_token_id": 2,
            "eos_token_id": 1,
        }
    },
)

FAMILY = Family(
    name="gemma2",
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    fixed={**FIXED, "model_config.use_sandwich_norm": True},
    rules=llama.rules(
        *SHARED,
        ScoreScale("query_pre_attn_scalar", 256, is_width=True),
        cap("attn_logit_softcapping", 50.0),
        cap("final_logit_softcapping", 30.0),
        PatternOfWindows(4096, 2),
        activation=Activation("hidden_activation", TANH),
        heads=Heads(default_groups=4, default_width=256),
        is_tied=True,
    ),
    places=Decoder(norms=SANDWICH),
    neutral=frozenset({"cache_implementation", "hidden_act"}),
    presets={
        "gemma2_2b": _gemma2(26, 2304, 9216, 8, 4),
        "gemma2_9b": _gemma2(42, 3584, 14336, 16, 8),
        "gemma2_27b": _gemma2(46, 4608, 36864, 32, 16),
    },
)
