# SPDX-License-Identifier: Apache-2.0
"""gpt-oss: sinks, windows in every second layer, biases everywhere, limited gates, yarn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.expert_rules import BALANCE, Normed, experts
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place, Places
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads, Key, Only
from mindspeed_ms.models.families.window import PatternOfWindows
from mindspeed_ms.models.feed_forward import MoESpec


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoder(Decoder):
    """Experts are stacked, and rows of gate and up take turns there."""

    def _experts(self, places: Places, theirs: str, ours: str, block: MoESpec) -> Iterator[Place]:
        for part in ("weight", "bias"):
            yield from places.whole(f"{theirs}.router.{part}", f"{ours}.router.{part}")
        width, number = block.expert.width, block.num_experts
        turns = [(start + row, 1) for row in range(width) for start in (0, width)]
        for index in range(number):
            own, place = f"{ours}.experts.local_experts.{index}", (index, number)
            for end, suffix in (("weight", ""), ("bias", "_bias")):
                both, down = (
                    f"{theirs}.experts.{word}{suffix}" for word in ("gate_up_proj", "down_proj")
                )
                yield from places.stacked(both, f"{own}.mapping.{end}", place, turns)
                yield from places.stacked(down, f"{own}.projection.{end}", place)


_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}


def _gpt_oss(layers: int, num_experts: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_oss",
        "vocab_size": 201088,
        "num_hidden_layers": layers,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": num_experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_scaling": _YARN,
        "eos_token_id": 200002,
        "pad_token_id": 199999,
    }


FAMILY = Family(
    name="gpt_oss",
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    fixed={
        **llama.FIXED,
        "model_config.mlp_has_bias": True,
        "model_config.hidden_act": "quick_gelu",
        "model_config.gated_linear_unit": True,
        "model_config.glu_linear_offset": 1.0,
        "model_config.softmax_type": "learnable",
        "moe_config.moe_router_has_bias": True,
    },
    rules=llama.rules(
        *experts("num_local_experts", "intermediate_size"),
        Biases(
            "attention_bias",
            ("model_config.qkv_has_bias", "model_config.out_proj_has_bias"),
            True,
        ),
        Key("swiglu_limit", "model_config.activation_func_clamp_value", 7.0, float),
        Key("swiglu_alpha", "model_config.glu_alpha", 1.702, float),
        Normed(None),
        BALANCE,
        PatternOfWindows(128, 2),
        activation=Only("hidden_act", ("silu",), "silu"),
        heads=Heads(default_groups=8, default_width=64),
        rope=Rope(150000.0, usual=_YARN),
        epsilon=1e-5,
    ),
    places=_Decoder(),
    neutral=frozenset({"output_router_logits", "experts_per_token", "initial_context_length"}),
    presets={"gpt_oss_20b": _gpt_oss(24, 32), "gpt_oss_120b": _gpt_oss(36, 128)},
)
