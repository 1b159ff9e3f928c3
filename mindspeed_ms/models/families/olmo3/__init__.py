# SPDX-License-Identifier: Apache-2.0
"""OLMo 3: OLMo 2 with windows in three of four layers, whose positions are not stretched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import BEHIND, Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.gemma3 import TwoRopes
from mindspeed_ms.models.families.olmo2 import FAMILY as OLMO2
from mindspeed_ms.models.families.rope import Rope, scaling_of
from mindspeed_ms.models.families.rules import Fields
from mindspeed_ms.models.families.window import FULL, SLIDING, PatternOfWindows

_BASE = 500000.0


@dataclass(frozen=True, slots=True)
class SharedBase:
    """Rotations of both kinds of layers, by one base unless they are told apart."""

    @property
    def keys(self) -> frozenset[str]:
        """As of other models."""
        return Rope().keys

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Bases, and what stretches where there is no window.

        Raises:
            ValueError: another base, of which ``transformers`` 4 and 5 make two different models.
        """
        base, windows = float(theirs.get("rope_theta") or _BASE), PatternOfWindows(4096, 4)
        nested = theirs.get("rope_parameters") or {}
        if base != _BASE and not nested and windows.read(theirs):
            raise ValueError(
                f"config.json has rope_theta {base}, by which layers with a window rotate in some "
                "versions of transformers only; give rope_parameters for each kind of layer"
            )
        return TwoRopes(Rope(_BASE), base, windows).read(theirs)

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Spelled as in ``transformers`` 4 where version 5 understands the same, else as in 5."""
        model = config.model_config
        local = model.rotary_base_local or model.rotary_base
        if model.rotary_base == local == _BASE:
            return Rope().write(config)
        whole = {"rope_type": "default", **(scaling_of(model) or {})}
        return {
            "rope_parameters": {
                FULL: {**whole, "rope_theta": model.rotary_base},
                SLIDING: {"rope_type": "default", "rope_theta": local},
            }
        }


def _olmo3(layers: int, hidden: int, inner: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "olmo3",
        "vocab_size": 100278,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-6,
        "rope_theta": _BASE,
        "sliding_window": 4096,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": True,
            "attention_factor": 1.2079441541679836,
        },
        "eos_token_id": 100257,
        "pad_token_id": 100277,
    }


FAMILY = Family(
    name="olmo3",
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    fixed=OLMO2.fixed,
    rules=llama.rules(
        llama.ATTENTION_BIAS, PatternOfWindows(4096, 4), rope=SharedBase(), epsilon=1e-5
    ),
    places=Decoder(norms=BEHIND),
    presets={
        "olmo3_7b": _olmo3(32, 4096, 11008, 32, 32),
        "olmo3_32b": _olmo3(64, 5120, 27648, 40, 8),
    },
)
