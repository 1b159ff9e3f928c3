# SPDX-License-Identifier: Apache-2.0
"""StarCoder and SantaCoder: GPT-2 whose heads share one key and value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import gpt2
from mindspeed_ms.models.families.place import Place, Places
from mindspeed_ms.models.families.rules import Fields, Heads, Only, value_of, with_rules
from mindspeed_ms.models.layer import LayerSpec


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """``multi_query``: all heads have one key and value. Else each has its own."""

    plain: Heads = Heads("n_head", groups=None, width=None, hidden="n_embd")  # noqa: RUF009

    @property
    def keys(self) -> frozenset[str]:
        """Heads, and the switch."""
        return self.plain.keys | {"multi_query"}

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The heads."""
        fields = self.plain.read(theirs)
        if value_of(theirs, "multi_query", True) and theirs[self.plain.heads] > 1:
            fields |= {
                "model_config.group_query_attention": True,
                "model_config.num_query_groups": 1,
            }
        return fields

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The heads; the round trip shows whether there are one or as many keys."""
        return {**self.plain.write(config), "multi_query": config.model_config.num_kv_groups == 1}


def _grouped(places: Places, theirs: str, ours: str, layer: LayerSpec) -> Iterator[Place]:
    """Groups of heads lie together, as here."""
    yield from places.linear(f"{theirs}.c_attn", f"{ours}.qkv_proj")
    yield from places.linear(f"{theirs}.c_proj", f"{ours}.out_proj")


def _starcoder(layers: int, hidden: int, heads: int, length: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_bigcode",
        "vocab_size": 49280 if length == 2048 else 49152,
        "n_layer": layers,
        "n_embd": hidden,
        "n_head": heads,
        "n_positions": length,
        "multi_query": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


_NO_DIVISION = Only("scale_attn_by_inverse_layer_idx", (False,), False)

FAMILY = replace(
    gpt2.FAMILY,
    name="gpt_bigcode",
    model_type="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    rules=with_rules(
        gpt2.FAMILY.rules, SharedKeys(), gpt2.activation_rule("gelu_pytorch_tanh"), _NO_DIVISION
    ),
    places=gpt2.places_with(_grouped),
    neutral=gpt2.FAMILY.neutral
    | {"attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"}
    | {"inference_runner", "validate_runner_input", "pre_allocate_kv_cache"}
    | {"attention_head_type", "max_sequence_length", "max_batch_size", "pad_key_length"},
    presets={
        "santacoder": _starcoder(24, 2048, 16, 2048),
        "starcoderbase_1b": _starcoder(24, 2048, 16, 8192),
        "starcoderbase_3b": _starcoder(36, 2816, 22, 8192),
        "starcoderbase_7b": _starcoder(42, 4096, 32, 8192),
        "starcoder_15b": _starcoder(40, 6144, 48, 8192),
    },
)
