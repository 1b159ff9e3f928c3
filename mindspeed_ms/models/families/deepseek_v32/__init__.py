# SPDX-License-Identifier: Apache-2.0
"""DeepSeek V3.2: V3 with sparse attention, whose keys an indexer chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import deepseek_v3
from mindspeed_ms.models.families.deepseek_v2 import NEUTRAL
from mindspeed_ms.models.families.expert_rules import ListedBlocks
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Fields, Key, Only, with_rules

_KIND = "indexed_attention"


@dataclass(frozen=True, slots=True)
class AllIndexed:
    """Every layer has an indexer."""

    keys: frozenset[str] = frozenset({"layer_types"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Nothing; the list is checked.

        Raises:
            ValueError: layers of another kind.
        """
        others = sorted(set(theirs.get("layer_types") or ()) - {_KIND})
        if others:
            raise ValueError(f"config.json has layer_types {others}; only {_KIND} is supported")
        return {}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The list."""
        return {"layer_types": [_KIND] * config.model_config.num_layers}


FAMILY = Family(
    name="deepseek_v32",
    model_type="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    fixed={
        **deepseek_v3.FAMILY.fixed,
        "model_config.experimental_attention_variant": "dsa",
        "model_config.dsa_indexer_rope": "first",
        "model_config.dsa_indexer_k_norm_epsilon": 1e-6,
    },
    rules=with_rules(
        tuple(rule for rule in deepseek_v3.FAMILY.rules if "rope_interleave" not in rule.keys),
        ListedBlocks(3),
        AllIndexed(),
        Key("index_n_heads", "model_config.dsa_indexer_n_heads", 64),
        Key("index_head_dim", "model_config.dsa_indexer_head_dim", 128),
        Key("index_topk", "model_config.dsa_indexer_topk", 2048),
        Only("mlp_bias", (False,), False),
    ),
    places=deepseek_v3.places_of,
    absent=deepseek_v3.without_further,
    neutral=NEUTRAL,
    presets={
        "deepseek_v3.2": {
            **deepseek_v3.FAMILY.presets["deepseek_v3"],
            "model_type": "deepseek_v32",
            "index_n_heads": 64,
            "index_head_dim": 128,
            "index_topk": 2048,
        }
    },
)
