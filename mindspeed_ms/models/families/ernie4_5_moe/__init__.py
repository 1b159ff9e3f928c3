# SPDX-License-Identifier: Apache-2.0
"""ERNIE 4.5 with experts: shares of all experts, chosen with a bias, that are made to sum to 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import ernie4_5, llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.expert_rules import (
    BALANCE,
    NUM_EXPERTS,
    OneOf,
    Shared,
    frequency,
    layers_with_experts,
)
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Fields, Heads, Key, Only, value_of

_START, _END, _STEP = "moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"


@dataclass(frozen=True, slots=True)
class StepsWithin:
    """Every n-th layer from one layer to another has experts; an end of -1 is the last layer."""

    keys: frozenset[str] = frozenset({_START, _END, _STEP})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The layers."""
        number, step = value_of(theirs, "num_hidden_layers"), value_of(theirs, _STEP, 1)
        first, last = value_of(theirs, _START, 1), value_of(theirs, _END, -1)
        last = number - 1 if last == -1 else last
        return frequency(
            [(layer + 1) % step == 0 and first <= layer <= last for layer in range(number)]
        )

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The first, the last and their distance; the round trip shows whether it is even."""
        held = [layer for layer, has in enumerate(layers_with_experts(config)) if has]
        first, last = (held[0], held[-1]) if held else (config.model_config.num_layers, 0)
        return {_START: first, _END: last, _STEP: held[1] - held[0] if len(held) > 1 else 1}


def _ernie(layers: int, hidden: int, inner: int, heads: int, groups: int) -> dict[str, Any]:
    is_large = layers == 54
    return {
        "model_type": "ernie4_5_moe",
        "vocab_size": 103424,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "moe_num_experts": 64,
        "moe_k": 8 if is_large else 6,
        "moe_intermediate_size": 3584 if is_large else 1536,
        "moe_num_shared_experts": 0 if is_large else 2,
        "moe_layer_start_index": 3 if is_large else 1,
        "moe_layer_end_index": layers - 1,
        "moe_layer_interval": 1,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": not is_large,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


FAMILY = Family(
    name="ernie4_5_moe",
    model_type="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    fixed={
        **ernie4_5.FAMILY.fixed,
        "moe_config.moe_router_dtype": "fp32",
        "moe_config.moe_router_pre_softmax": True,
        "moe_config.moe_router_weights": "normalized",
        "moe_config.moe_router_enable_expert_bias": True,
    },
    rules=llama.rules(
        # Biases of dense blocks and of experts go together there, and its head has one, too.
        Only("use_bias", (False,), False),
        OneOf(("moe_num_experts", "num_experts"), NUM_EXPERTS, 64),
        OneOf(("moe_k", "num_experts_per_tok"), "moe_config.moe_router_topk", 6),
        Key("moe_intermediate_size", "moe_config.moe_ffn_hidden_size", 1536),
        Shared(2, "moe_num_shared_experts", 1536),
        StepsWithin(),
        BALANCE,
        Only("moe_norm_min", (1e-12,), 1e-12),
        heads=Heads(default_groups=4),
        rope=Rope(500000.0),
        epsilon=1e-5,
        is_tied=True,
    ),
    places=Decoder(choice_bias="moe_statics.e_score_correction_bias", has_row_of_biases=True),
    neutral=frozenset({"output_router_logits"}),
    presets={
        "ernie4.5_21b_a3b": _ernie(28, 2560, 12288, 20, 4),
        "ernie4.5_300b_a47b": _ernie(54, 8192, 28672, 64, 8),
    },
)
