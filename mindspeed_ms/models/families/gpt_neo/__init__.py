# SPDX-License-Identifier: Apache-2.0
"""GPT-Neo: GPT-2 with separate queries, keys and values, plain scores, and layers with windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.gpt2 import SUMMARY, Inner, activation_rule, places_with
from mindspeed_ms.models.families.place import Place, Places, separate_attention
from mindspeed_ms.models.families.rules import Fields, Heads, Key, Length, tied_head, value_of
from mindspeed_ms.models.families.window import window_fields, window_width
from mindspeed_ms.models.layer import LayerSpec

_KINDS = ("global", "local")


@dataclass(frozen=True, slots=True)
class RepeatedKinds:
    """``attention_types``: lists of kinds of layers, and how often each list is repeated."""

    width: int = 256
    keys: frozenset[str] = frozenset({"attention_layers", "attention_types", "window_size"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The window, and the layers that have it.

        Raises:
            ValueError: a list that is not of such kinds, or not of all layers.
        """
        number = value_of(theirs, "num_layers")
        types = value_of(theirs, "attention_types", [[list(_KINDS), 12]])
        kinds = [kind for some, times in types for kind in list(some) * times]
        if len(kinds) != number or set(kinds) - set(_KINDS):
            raise ValueError(
                f"config.json has attention_types {types}; they are lists of global and local with "
                f"a number of repetitions each, for {number} layers together"
            )
        layers = [kind == "local" for kind in kinds]
        width = value_of(theirs, "window_size", self.width)
        return window_fields(width, layers) if any(layers) else {}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The shortest list whose repetitions are all layers."""
        model, number = config.model_config, config.model_config.num_layers
        layers = [_KINDS[model.has_window(layer)] for layer in range(number)]
        length = next(n for n in range(1, number + 1) if layers[:n] * (number // n) == layers)
        return {
            "attention_types": [[layers[:length], number // length]],
            "attention_layers": layers,
            "window_size": window_width(config) or self.width,
        }


def _separate(places: Places, theirs: str, ours: str, layer: LayerSpec) -> Iterator[Place]:
    words = ("q_proj", "k_proj", "v_proj", "out_proj")
    yield from separate_attention(places, f"{theirs}.attention", ours, layer, words)


def _gpt_neo(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neo",
        "vocab_size": 50257,
        "num_layers": layers,
        "hidden_size": hidden,
        "num_heads": heads,
        "attention_types": [[list(_KINDS), layers // 2]],
        "window_size": 256,
        "max_position_embeddings": 2048,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }


FAMILY = Family(
    name="gpt_neo",
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    fixed={
        "model_config.position_embedding_type": "learned_absolute",
        "model_config.qkv_has_bias": False,
        "model_config.softmax_scale": 1.0,
    },
    rules=(
        Key("num_layers", "model_config.num_layers"),
        Key("hidden_size", "model_config.hidden_size"),
        Heads("num_heads", groups=None, width=None),
        Inner("intermediate_size", "hidden_size"),
        Length(),
        RepeatedKinds(),
        activation_rule("gelu_new"),
        Key("layer_norm_epsilon", "model_config.norm_epsilon", 1e-5, float),
        Key("initializer_range", "model_config.init_method_std", 0.02, float),
        Key("attention_dropout", "model_config.attention_dropout_rate", 0.0, float),
        Key("resid_dropout", "model_config.hidden_dropout_rate", 0.0, float),
        tied_head(True),
    ),
    places=places_with(_separate),
    prefix="transformer.",
    neutral=SUMMARY
    | {"classifier_dropout", "embed_dropout", "gradient_checkpointing", "tokenizer_class"},
    presets={
        "gpt_neo_125m": _gpt_neo(12, 768, 12),
        "gpt_neo_1.3b": _gpt_neo(24, 2048, 16),
        "gpt_neo_2.7b": _gpt_neo(32, 2560, 20),
    },
)
