# SPDX-License-Identifier: Apache-2.0
"""GPT-2: learned positions, layer norms, biases everywhere, matrices stored [inputs, outputs]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def _places(spec: ModelSpec) -> Iterator[Place]:
    """Queries come first there, then all keys, then all values."""
    places = Places(spec, is_transposed=True)
    embedding = "embedding.word_embeddings.weight"
    yield from places.whole("wte.weight", embedding, transposed=False)
    positions = "embedding.position_embeddings.weight"
    yield from places.whole("wpe.weight", positions, transposed=False)
    for number, layer in enumerate(spec.layers):
        if layer is None:
            continue
        theirs, ours = f"h.{number}", f"encoder.layers.{number}"
        assert isinstance(layer.attention, AttentionSpec), "heads have one width"
        rows = [run for kind in "qkv" for run in query_rows(layer.attention, kind)]
        yield from places.norm(f"{theirs}.ln_1", f"{ours}.input_norm")
        yield from places.linear(f"{theirs}.attn.c_attn", f"{ours}.attention.qkv_proj", rows)
        yield from places.linear(f"{theirs}.attn.c_proj", f"{ours}.attention.out_proj")
        yield from places.norm(f"{theirs}.ln_2", f"{ours}.post_attention_norm")
        yield from places.linear(f"{theirs}.mlp.c_fc", f"{ours}.mlp.mapping")
        yield from places.linear(f"{theirs}.mlp.c_proj", f"{ours}.mlp.projection")
    yield from places.norm("ln_f", "encoder.final_norm")
    yield from places.whole("lm_head.weight", "output_layer.weight", transposed=False)


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
    places=_places,
    prefix="transformer.",
    neutral=frozenset(
        {
            "embd_pdrop",
            "n_ctx",
            "reorder_and_upcast_attn",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
            "task_specific_params",
        }
    ),
    presets={
        "gpt2": _gpt2(12, 768, 12),
        "gpt2_medium": _gpt2(24, 1024, 16),
        "gpt2_large": _gpt2(36, 1280, 20),
        "gpt2_xl": _gpt2(48, 1600, 25),
    },
)
