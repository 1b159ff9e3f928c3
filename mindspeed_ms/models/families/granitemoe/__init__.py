# SPDX-License-Identifier: Apache-2.0
"""Granite 3 with experts, which are stacked in the files; some have one that all tokens pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.expert_rules import BALANCE, NUM_EXPERTS, Normed, OneOf
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.granite import MULTIPLIERS
from mindspeed_ms.models.families.place import Place, Places
from mindspeed_ms.models.families.rules import Key
from mindspeed_ms.models.feed_forward import MoESpec

_WORDS = (("input_linear", "mapping"), ("output_linear", "projection"))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoder(Decoder):
    """Experts are stacked, [outputs, inputs] each; the shared one stands beside their block."""

    def _experts(self, places: Places, theirs: str, ours: str, block: MoESpec) -> Iterator[Place]:
        yield from places.whole(f"{theirs}.router.layer.weight", f"{ours}.router.weight")
        for index in range(block.num_experts):
            own, part = f"{ours}.experts.local_experts.{index}", (index, block.num_experts)
            for word, name in _WORDS:
                names = f"{theirs}.{word}.weight", f"{own}.{name}.weight"
                yield from places.stacked(*names, part, transposed=False)
        shared = theirs.removesuffix(self.block) + "shared_mlp"
        for word, name in _WORDS:
            yield from places.linear(f"{shared}.{word}", f"{ours}.shared_experts.mlp.{name}")


FAMILY = Family(
    name="granitemoe",
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(
        llama.ATTENTION_BIAS,
        *MULTIPLIERS,
        Key("intermediate_size", "moe_config.moe_ffn_hidden_size"),
        OneOf(("num_local_experts",), NUM_EXPERTS, 8),
        Key("num_experts_per_tok", "moe_config.moe_router_topk", 2),
        Normed(None),
        BALANCE,
    ),
    places=_Decoder(block="block_sparse_moe"),
    neutral=frozenset({"output_router_logits"}),
    presets={
        f"granite3_{name}": {
            "model_type": "granitemoe",
            "vocab_size": 49155,
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": 512,
            "num_attention_heads": hidden // 64,
            "num_key_value_heads": 8,
            "num_local_experts": experts,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.015625,
            "logits_scaling": 6.0,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        for name, layers, hidden, experts in (
            ("1b_a400m", 24, 1024, 32),
            ("3b_a800m", 32, 1536, 40),
        )
    },
)


def _width(width: int | None) -> int:
    return width or 0


def _is_there(width: Any) -> int | None:
    return width or None


SHARED = replace(
    FAMILY,
    name="granitemoeshared",
    model_type="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    rules=(
        *FAMILY.rules,
        Key(
            "shared_intermediate_size",
            "moe_config.moe_shared_expert_intermediate_size",
            0,
            _is_there,
            _width,
        ),
    ),
    presets={
        "granitemoe_7b_1b_shared": {
            **FAMILY.presets["granite3_3b_a800m"],
            "model_type": "granitemoeshared",
            "num_hidden_layers": 40,
            "num_local_experts": 62,
            "num_experts_per_tok": 6,
            "shared_intermediate_size": 1024,
        }
    },
)
