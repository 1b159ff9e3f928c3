# SPDX-License-Identifier: Apache-2.0
"""MiniMax M2: queries and keys normalised whole, a part of each head rotated, and experts that are
chosen by sigmoid scores with a bias.
"""  # noqa: D205 - one sentence

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.deepseek_v3 import SIGMOID
from mindspeed_ms.models.families.expert_rules import BALANCE, JITTER, Normed, OneOf
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.olmo2 import WHOLE_NORMS
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Fields, Heads, Key, Only


@dataclass(frozen=True, slots=True)
class PartialRope:
    """The rotated part of each head, as a share or as ``rotary_dim`` channels."""

    plain: Rope = Rope(5000000.0, share=1.0)  # noqa: RUF009 - it is frozen

    @property
    def keys(self) -> frozenset[str]:
        """Those of other models, and the channels."""
        return self.plain.keys | {"rotary_dim"}

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Base, share, and what stretches; a share wins over a number of channels."""
        channels = theirs.get("rotary_dim")
        nested = theirs.get("rope_parameters") or {}
        if channels is not None and "partial_rotary_factor" not in nested:
            share = channels / theirs.get("head_dim", 128)
            theirs = {"partial_rotary_factor": share, **theirs}
        return self.plain.read(theirs)

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The share."""
        return self.plain.write(config)


FAMILY = Family(
    name="minimax_m2",
    model_type="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    fixed={**llama.FIXED, **SIGMOID, **WHOLE_NORMS},
    rules=llama.rules(
        Key("intermediate_size", "moe_config.moe_ffn_hidden_size"),
        OneOf(("num_local_experts", "num_experts"), "moe_config.num_experts", 256),
        Key("num_experts_per_tok", "moe_config.moe_router_topk", 8),
        BALANCE,
        JITTER,
        Normed(None, has_single_scores=True),
        Only("scoring_func", ("sigmoid",), "sigmoid"),
        Only("use_qk_norm", (True,), True),
        heads=Heads(default_groups=8, default_width=128),
        rope=PartialRope(),
    ),
    places=Decoder(
        block="block_sparse_moe",
        expert=("w1", "w3", "w2"),
        choice_bias="e_score_correction_bias",
    ),
    neutral=frozenset({"output_router_logits"}),
    presets={
        "minimax_m2": {
            "model_type": "minimax_m2",
            "vocab_size": 200064,
            "num_hidden_layers": 62,
            "hidden_size": 3072,
            "intermediate_size": 1536,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_local_experts": 256,
            "num_experts_per_tok": 8,
            "rotary_dim": 64,
            "max_position_embeddings": 196608,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5000000.0,
        }
    },
)
