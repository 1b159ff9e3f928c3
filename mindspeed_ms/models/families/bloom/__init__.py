# SPDX-License-Identifier: Apache-2.0
"""BLOOM: scores that fall with the distance instead of positions, and normalised embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place, Places
from mindspeed_ms.models.families.rules import Fields, Key, Length, tied_head, value_of
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.models.model import ModelSpec

_NAMES = (
    ("self_attention.query_key_value", "attention.qkv_proj"),
    ("self_attention.dense", "attention.out_proj"),
    ("mlp.dense_h_to_4h", "mlp.mapping"),
    ("mlp.dense_4h_to_h", "mlp.projection"),
)
NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Layers, width and heads, which files spell in two ways; the first is written."""

    spellings: tuple[tuple[str, ...], ...] = (
        ("n_layer", "num_hidden_layers"),
        ("hidden_size", "n_embed"),
        ("n_head", "num_attention_heads"),
    )

    @property
    def keys(self) -> frozenset[str]:
        """All spellings."""
        return frozenset(key for keys in self.spellings for key in keys)

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The sizes, and those that follow.

        Raises:
            ValueError: a width that heads cannot share.
        """
        layers, hidden, heads = (
            value_of(theirs, next((key for key in keys if theirs.get(key) is not None), keys[0]))
            for keys in self.spellings
        )
        if hidden % heads:
            raise ValueError(
                f"config.json has hidden_size {hidden} and n_head {heads}; the first must be a "
                "multiple of the second"
            )
        return {
            "model_config.num_layers": layers,
            "model_config.hidden_size": hidden,
            "model_config.ffn_hidden_size": 4 * hidden,
            "model_config.num_attention_heads": heads,
            "model_config.kv_channels": hidden // heads,
        }

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The sizes; the round trip shows whether the others follow."""
        model = config.model_config
        values = (model.num_layers, model.hidden_size, model.num_attention_heads)
        return {keys[0]: value for keys, value in zip(self.spellings, values, strict=True)}


def places_with(
    norms: Callable[[LayerSpec], tuple[str, str]],
) -> Callable[[ModelSpec], Iterator[Place]]:
    """Every tensor of a model that is named like BLOOM; groups of heads lie together, as here.

    Args:
        norms: names of the norms of a layer, before attention and before the block behind it.
    """

    def places_of(spec: ModelSpec) -> Iterator[Place]:
        places = Places(spec)
        yield from places.whole("word_embeddings.weight", "embedding.word_embeddings.weight")
        yield from places.norm("word_embeddings_layernorm", "embedding.norm")
        for number, layer in enumerate(spec.layers):
            if layer is None:
                continue
            theirs, ours = f"h.{number}", f"encoder.layers.{number}"
            for name, own in zip(norms(layer), ("input_norm", "post_attention_norm"), strict=True):
                yield from places.norm(f"{theirs}.{name}", f"{ours}.{own}")
            for word, own in _NAMES:
                yield from places.linear(f"{theirs}.{word}", f"{ours}.{own}")
        yield from places.norm("ln_f", "encoder.final_norm")
        yield from places.whole("lm_head.weight", "output_layer.weight")

    return places_of


def _bloom(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bloom",
        "vocab_size": 250880,
        "n_layer": layers,
        "hidden_size": hidden,
        "n_head": heads,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }


FAMILY = Family(
    name="bloom",
    model_type="bloom",
    architecture="BloomForCausalLM",
    fixed={
        "model_config.position_embedding_type": "alibi",
        "model_config.normalization": "LayerNorm",
        "model_config.embed_layernorm": True,
        "model_config.mlp_has_bias": True,
        "model_config.qkv_has_bias": True,
        "model_config.out_proj_has_bias": True,
        "model_config.hidden_act": "fast_gelu",
    },
    rules=(
        Sizes(),
        Length("seq_length", 2048),
        Key("layer_norm_epsilon", "model_config.norm_epsilon", 1e-5, float),
        Key("layer_norm_epsilon", "model_config.embed_layernorm_epsilon", 1e-5, float),
        Key("initializer_range", "model_config.init_method_std", 0.02, float),
        Key("attention_dropout", "model_config.attention_dropout_rate", 0.0, float),
        Key("hidden_dropout", "model_config.hidden_dropout_rate", 0.0, float),
        Key(
            "apply_residual_connection_post_layernorm",
            "model_config.apply_residual_connection_post_norm",
            False,
        ),
        tied_head(True),
    ),
    places=places_with(lambda layer: NORMS),
    prefix="transformer.",
    neutral=frozenset({"attention_softmax_in_fp32", "masked_softmax_fusion", "n_inner"})
    | {"offset_alibi", "pretraining_tp", "skip_bias_add", "skip_bias_add_qkv", "slow_but_exact"}
    | {"unk_token_id", "bias_dropout_fusion"},
    presets={
        "bloom_560m": _bloom(24, 1024, 16),
        "bloom_1b1": _bloom(24, 1536, 16),
        "bloom_7b1": _bloom(30, 4096, 32),
        "bloom_176b": _bloom(70, 14336, 112),
    },
)
