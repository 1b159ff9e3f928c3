# SPDX-License-Identifier: Apache-2.0
"""InternLM 3: Llama whose biases have other names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Fields, Heads

_SPELLINGS = (("qkv_bias", "attention_bias"), ("bias", "mlp_bias"))
"""Of queries, keys and values; and of all other matrices. The first are those of the hub."""


@dataclass(frozen=True, slots=True)
class BothBiases:
    """Biases of queries, keys and values, and of the others: both or none, as in its class."""

    keys: frozenset[str] = frozenset(key for keys in _SPELLINGS for key in keys)

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """All fields alike.

        Raises:
            ValueError: one without the other.
        """
        first, others = (any(theirs.get(key) for key in keys) for keys in _SPELLINGS)
        if first != others:
            raise ValueError(
                f"config.json has qkv_bias {first} and bias {others}; models of this type have "
                "both or none"
            )
        return dict.fromkeys(llama.BIASES, first)

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Both switches; the round trip shows whether all biases are there."""
        return dict.fromkeys(("qkv_bias", "bias"), config.model_config.mlp_has_bias)


FAMILY = Family(
    name="internlm3",
    model_type="internlm3",
    architecture="InternLM3ForCausalLM",
    fixed=llama.FIXED,
    rules=llama.rules(BothBiases(), heads=Heads(default_groups=2, default_width=128), epsilon=1e-5),
    places=Decoder(),
    presets={
        "internlm3_8b": {
            "model_type": "internlm3",
            "vocab_size": 128512,
            "num_hidden_layers": 48,
            "hidden_size": 4096,
            "intermediate_size": 10240,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 50000000.0,
            "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        }
    },
)
