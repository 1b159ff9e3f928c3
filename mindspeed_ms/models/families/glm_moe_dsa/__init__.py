# SPDX-License-Identifier: Apache-2.0
"""GLM-5: DeepSeek V3.2 whose indexer rotates neighbours, and layers that share what it chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import deepseek_v32
from mindspeed_ms.models.families.deepseek_v2 import narrow_queries
from mindspeed_ms.models.families.expert_rules import Groups
from mindspeed_ms.models.families.rules import Fields, Key, value_of, with_rules

_STEP, _OFFSET = "index_topk_freq", "index_skip_topk_offset"
_LETTERS = {"F": "full", "S": "shared"}


@dataclass(frozen=True, slots=True)
class SharedChoices:
    """Which layers choose keys: a list, a pattern of letters, or every n-th from an offset on."""

    offset: int = 2
    keys: frozenset[str] = frozenset({"indexer_types", "index_topk_pattern", _STEP, _OFFSET})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The step and the offset.

        Raises:
            ValueError: a list that no step and offset amount to.
        """
        number = value_of(theirs, "num_hidden_layers")
        step, offset = value_of(theirs, _STEP, 1) or 1, value_of(theirs, _OFFSET, self.offset)
        pattern = theirs.get("index_topk_pattern") or ()
        kinds = theirs.get("indexer_types") or [_LETTERS.get(kind, kind) for kind in pattern]
        usual = _kinds(number, step, offset)
        if kinds and list(kinds) != usual:
            chosen = [index for index, kind in enumerate(kinds) if kind == "full"]
            gaps = [behind - index for index, behind in zip(chosen, chosen[1:], strict=False)]
            step = next((gap for gap in gaps if gap > 1), max(number - max(chosen, default=0), 1))
            offset = next((i for i, kind in enumerate(kinds) if kind == "shared"), number)
            if list(kinds) != _kinds(number, step, offset):
                raise ValueError(
                    f"config.json has indexer_types {list(kinds)}; layers that choose keys must "
                    f"follow in even steps, full or shared for each of the {number} layers"
                )
        return {
            "model_config.dsa_indexer_topk_freq": step,
            "model_config.dsa_indexer_skip_topk_offset": offset,
        }

    def write(self, config: AllConfig) -> dict[str, Any]:
        """All of it."""
        model = config.model_config
        step, offset = model.dsa_indexer_topk_freq, model.dsa_indexer_skip_topk_offset
        kinds = _kinds(model.num_layers, step, offset)
        return {_STEP: step, _OFFSET: offset, "indexer_types": kinds}


def _kinds(number: int, step: int, offset: int) -> list[str]:
    """What each layer does."""
    behind = [max(layer + 1 - offset, 0) for layer in range(number)]
    return ["shared" if count % step else "full" for count in behind]


FAMILY = replace(
    deepseek_v32.FAMILY,
    name="glm_moe_dsa",
    model_type="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    fixed={**deepseek_v32.FAMILY.fixed, "model_config.dsa_indexer_rope": "first_interleaved"},
    rules=with_rules(
        deepseek_v32.FAMILY.rules,
        SharedChoices(),
        narrow_queries(2048),
        Groups(2, usual=(1, 1)),
        Key("index_n_heads", "model_config.dsa_indexer_n_heads", 32),
        Key("rms_norm_eps", "model_config.norm_epsilon", 1e-5, float),
    ),
    presets={
        "glm5": {
            "model_type": "glm_moe_dsa",
            "vocab_size": 154880,
            "num_hidden_layers": 78,
            "hidden_size": 6144,
            "intermediate_size": 12288,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "q_lora_rank": 2048,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 192,
            "qk_rope_head_dim": 64,
            "v_head_dim": 256,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "first_k_dense_replace": 3,
            "routed_scaling_factor": 2.5,
            "num_nextn_predict_layers": 1,
            "index_n_heads": 32,
            "index_head_dim": 128,
            "index_topk": 2048,
            "max_position_embeddings": 202752,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "eos_token_id": [154820, 154827, 154829],
            "pad_token_id": 154820,
        }
    },
)
