# SPDX-License-Identifier: Apache-2.0
"""DeepSeek V3 and R1: sigmoid scores with a bias that balances, and layers for further tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.deepseek_v2 import COMMON, FIXED, NEUTRAL, scaling
from mindspeed_ms.models.families.expert_rules import DenseFirst, Groups, Normed, Shared
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place, Places
from mindspeed_ms.models.families.rules import Fields, Key, Only
from mindspeed_ms.models.model import ModelSpec

SIGMOID: Mapping[str, Any] = {
    "moe_config.moe_router_dtype": "fp32",
    "moe_config.moe_router_score_function": "sigmoid",
    "moe_config.moe_router_enable_expert_bias": True,
}
"""Routers: a sigmoid of each logit, and a bias that balances."""
FURTHER = "num_nextn_predict_layers"


@dataclass(frozen=True, slots=True)
class Further:
    """Layers for further tokens; a file may name some whose tensors are not there."""

    keys: frozenset[str] = frozenset({FURTHER})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The layers."""
        return {"model_config.mtp_num_layers": theirs.get(FURTHER) or None}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """How many, if there are any."""
        number = config.model_config.mtp_num_layers
        return {FURTHER: number} if number else {}


def without_further(theirs: Mapping[str, Any], names: Collection[str]) -> frozenset[str]:
    """Keys of a ``config.json`` that its tensors do not follow."""
    first = f"model.layers.{theirs['num_hidden_layers']}."
    is_there = any(name.startswith(first) for name in names)
    return frozenset() if is_there else frozenset({FURTHER})


def places_of(spec: ModelSpec) -> Iterator[Place]:
    """Layers for further tokens are numbered on; they bring copies of embedding and head."""
    decoder, places = Decoder(), Places(spec)
    yield from decoder(spec)
    for depth, further in enumerate(spec.further):
        theirs, ours = f"model.layers.{len(spec.layers) + depth}", f"mtp.layers.{depth}"
        yield from places.norm(f"{theirs}.enorm", f"{ours}.enorm")
        yield from places.norm(f"{theirs}.hnorm", f"{ours}.hnorm")
        yield from places.linear(f"{theirs}.eh_proj", f"{ours}.eh_proj")
        for parts in (decoder.layer, decoder.norms_of_heads):
            yield from parts(places, theirs, f"{ours}.transformer_layer", further.layer)
        yield from places.norm(f"{theirs}.shared_head.norm", f"{ours}.final_norm")
        for word, own in (
            ("embed_tokens", "embedding.word_embeddings"),
            ("shared_head.head", "output_layer"),
        ):
            yield from places.copy(f"{theirs}.{word}.weight", f"{own}.weight")


FAMILY = Family(
    name="deepseek_v3",
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fixed={**FIXED, **SIGMOID},
    rules=(
        *COMMON,
        DenseFirst(3),
        Shared(1),
        scaling(2.5),
        Groups(2, usual=(8, 4)),
        Further(),
        Only("scoring_func", ("sigmoid",), "sigmoid"),
        Normed(default=True, has_single_scores=True),
        Key("rope_interleave", "model_config.mla_config.rotary_interleaved", True),
    ),
    places=places_of,
    absent=without_further,
    neutral=NEUTRAL,
    presets={
        "deepseek_v3": {
            "model_type": "deepseek_v3",
            "vocab_size": 129280,
            "num_hidden_layers": 61,
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "first_k_dense_replace": 3,
            "n_group": 8,
            "topk_group": 4,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 1,
            "max_position_embeddings": 163840,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 40.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
    },
)
