# SPDX-License-Identifier: Apache-2.0
"""GPT-2: learned positions, layer norms, biases everywhere, matrices stored [inputs, outputs]."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.attention import AttentionSpec
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place, Places, query_rows
from mindspeed_ms.models.families.rules import (
    Activation,
    Fields,
    Heads,
    Key,
    Length,
    Only,
    tied_head,
    value_of,
)
from mindspeed_ms.models.gpt import softmax_scale
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.models.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Inner:
    """Inner width; none means four times the hidden size."""

    theirs: str = "n_inner"
    hidden: str = "n_embd"

    @property
    def keys(self) -> frozenset[str]:
        """The one key."""
        return frozenset({self.theirs})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The width."""
        width = theirs.get(self.theirs) or 4 * value_of(theirs, self.hidden)
        return {"model_config.ffn_hidden_size": width}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The width."""
        return {self.theirs: config.model_config.ffn_hidden_size}


@dataclass(frozen=True, slots=True)
class RootScale:
    """Whether scores are divided by the root of a head's width."""

    keys: frozenset[str] = frozenset({"scale_attn_weights"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The scale, if it is none."""
        is_on = bool(value_of(theirs, "scale_attn_weights", True))
        return {} if is_on else {"model_config.softmax_scale": 1.0}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Off where the scale is 1; the round trip shows whether another one is the root."""
        model = config.model_config
        is_off = softmax_scale(model) == 1.0 and model.kv_channels != 1
        return {"scale_attn_weights": not is_off}


def activation_rule(default: str) -> Activation:
    """The activation.

    Args:
        default: what a file without the key means.
    """
    return Activation("activation_function", default, is_gated=False, tanh="gelu_new")


AttentionPlaces = Callable[[Places, str, str, LayerSpec], Iterator[Place]]
"""(places, their path, the path here, layer) -> tensors of its attention."""


def places_with(
    attention: AttentionPlaces,
    words: tuple[str, str] = ("c_fc", "c_proj"),
    *,
    is_transposed: bool = False,
) -> Callable[[ModelSpec], Iterator[Place]]:
    """Every tensor of a model that is named like GPT-2.

    Args:
        attention: its tensors.
        words: names of both matrices of the feed-forward block.
        is_transposed: matrices of layers are stored [inputs, outputs].
    """

    def places_of(spec: ModelSpec) -> Iterator[Place]:
        places = Places(spec, is_transposed=is_transposed)
        for word, own in (("wte", "word_embeddings"), ("wpe", "position_embeddings")):
            yield from places.whole(f"{word}.weight", f"embedding.{own}.weight", transposed=False)
        for number, layer in enumerate(spec.layers):
            if layer is None:
                continue
            theirs, ours = f"h.{number}", f"encoder.layers.{number}"
            yield from places.norm(f"{theirs}.ln_1", f"{ours}.input_norm")
            yield from attention(places, f"{theirs}.attn", f"{ours}.attention", layer)
            yield from places.norm(f"{theirs}.ln_2", f"{ours}.post_attention_norm")
            for word, own in zip(words, ("mapping", "projection"), strict=True):
                yield from places.linear(f"{theirs}.mlp.{word}", f"{ours}.mlp.{own}")
        yield from places.norm("ln_f", "encoder.final_norm")
        for part in ("weight", "bias"):
            yield from places.whole(f"lm_head.{part}", f"output_layer.{part}", transposed=False)

    return places_of


def _queries_first(places: Places, theirs: str, ours: str, layer: LayerSpec) -> Iterator[Place]:
    """Queries come first there, then all keys, then all values."""
    assert isinstance(layer.attention, AttentionSpec), "heads have one width"
    rows = [run for kind in "qkv" for run in query_rows(layer.attention, kind)]
    yield from places.linear(f"{theirs}.c_attn", f"{ours}.qkv_proj", rows)
    yield from places.linear(f"{theirs}.c_proj", f"{ours}.out_proj")


def _gpt2(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_layer": layers,
        "n_embd": hidden,
        "n_head": heads,
        "n_positions": 1024,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }


SUMMARY = frozenset(
    f"summary_{word}"
    for word in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")
)
"""Keys of a head that makes labels."""

FAMILY = Family(
    name="gpt2",
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    fixed={"model_config.position_embedding_type": "learned_absolute"},
    rules=(
        Key("n_layer", "model_config.num_layers"),
        Key("n_embd", "model_config.hidden_size"),
        Heads("n_head", groups=None, width=None, hidden="n_embd"),
        Inner(),
        Length("n_positions"),
        activation_rule("gelu_new"),
        Key("layer_norm_epsilon", "model_config.norm_epsilon", 1e-5, float),
        Key("initializer_range", "model_config.init_method_std", 0.02, float),
        Key("attn_pdrop", "model_config.attention_dropout_rate", 0.1, float),
        Key("resid_pdrop", "model_config.hidden_dropout_rate", 0.1, float),
        tied_head(True),
        RootScale(),
        Key("scale_attn_by_inverse_layer_idx", "model_config.scale_by_inverse_layer", False),
        Only("add_cross_attention", (False,), False),
    ),
    places=places_with(_queries_first, is_transposed=True),
    prefix="transformer.",
    neutral=SUMMARY | {"embd_pdrop", "n_ctx", "reorder_and_upcast_attn", "task_specific_params"},
    presets={
        "gpt2": _gpt2(12, 768, 12),
        "gpt2_medium": _gpt2(24, 1024, 16),
        "gpt2_large": _gpt2(36, 1280, 20),
        "gpt2_xl": _gpt2(48, 1600, 25),
    },
)
