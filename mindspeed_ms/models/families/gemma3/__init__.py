# SPDX-License-Identifier: Apache-2.0
"""Gemma 3, its text models: normalised queries and keys, windows in five of six layers, which
rotate by a base of their own.
"""  # noqa: D205 - one sentence

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import SANDWICH, Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.gemma2 import FIXED, SHARED, TANH, cap
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Activation, Fields, Heads, Only, ScoreScale
from mindspeed_ms.models.families.window import FULL, SLIDING, PatternOfWindows

_LOCAL = "model_config.rotary_base_local"


@dataclass(frozen=True, slots=True)
class TwoRopes:
    """Rotations of layers that see everything, and of those with a window, by another base."""

    whole: Rope = Rope(1000000.0)  # noqa: RUF009 - it is frozen
    local_base: float = 10000.0
    windows: PatternOfWindows = PatternOfWindows(4096, 6)  # noqa: RUF009 - it is frozen

    @property
    def keys(self) -> frozenset[str]:
        """Those of both."""
        return self.whole.keys | {"rope_local_base_freq"}

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Both bases, and what stretches the first.

        Raises:
            ValueError: rotations in a window are stretched, too; or a spelling of other models,
                which ``transformers`` passes over.
        """
        nested = theirs.get("rope_parameters") or {}
        local: Mapping[str, Any] = {}
        if SLIDING in nested or FULL in nested:
            local = nested.get(SLIDING) or {}
        elif nested:
            raise ValueError(
                f"config.json has rope_parameters {dict(nested)} for layers of two kinds; give one "
                f"block for {FULL} and one for {SLIDING}"
            )
        scaling = theirs.get("rope_scaling") or {}
        if "rope_type" not in scaling and scaling:
            raise ValueError(
                f"config.json stretches rotations by {dict(scaling)}; models of this type name the "
                "kind by rope_type"
            )
        whole = nested.get(FULL) or {}
        if not (scaling or whole).get("truncate", True):
            raise ValueError(
                "config.json has truncate False for rotations of a kind of layers, which "
                "transformers passes over there; leave it out"
            )
        theirs = {**theirs, "rope_parameters": whole}
        theirs.pop("original_max_position_embeddings", None)  # it is not for blocks of layers
        if local.get("rope_type", "default") != "default":
            raise ValueError(
                f"config.json stretches rotations of layers with a window by {dict(local)}; only "
                "those of the others can be stretched"
            )
        base = theirs.get("rope_local_base_freq") or local.get("rope_theta") or self.local_base
        fields = self.whole.read(theirs)
        return fields | ({_LOCAL: float(base)} if self.windows.read(theirs) else {})

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Spelled as in ``transformers`` 4."""
        model = config.model_config
        has_windows = any(map(model.has_window, range(model.num_layers)))
        local = (model.rotary_base_local or model.rotary_base) if has_windows else self.local_base
        return {**self.whole.write(config), "rope_local_base_freq": local}


def _gemma3(layers: int, hidden: int, inner: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "hidden_activation": TANH,
        "max_position_embeddings": 32768,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }


FAMILY = Family(
    name="gemma3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    fixed={
        **FIXED,
        "model_config.use_sandwich_norm": True,
        "model_config.qk_layernorm": True,
    },
    rules=llama.rules(
        *SHARED,
        ScoreScale("query_pre_attn_scalar", 256, is_width=True),
        Only("attn_logit_softcapping", (None,)),  # which transformers does not read
        cap("final_logit_softcapping", None),
        PatternOfWindows(4096, 6),
        activation=Activation("hidden_activation", TANH),
        heads=Heads(default_groups=4, default_width=256),
        rope=TwoRopes(),
        is_tied=True,
    ),
    places=Decoder(norms=SANDWICH),
    neutral=frozenset({"cache_implementation", "hidden_act"}),
    presets={
        "gemma3_270m": _gemma3(18, 640, 2048, 4, 1),
        "gemma3_1b": _gemma3(26, 1152, 6912, 4, 1),
    },
)
