# SPDX-License-Identifier: Apache-2.0
"""MPT: scores that fall with the distance, layer norms that only multiply, no biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.attention import AttentionSpec
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import all_rows
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place, Places
from mindspeed_ms.models.families.rules import (
    Fields,
    Follows,
    Heads,
    Key,
    Length,
    Only,
    tied_head,
    value_of,
)
from mindspeed_ms.models.model import ModelSpec

_USUAL: Mapping[str, Any] = MappingProxyType(
    {
        "attn_type": "multihead_attention",
        "prefix_lm": False,
        "qk_ln": False,
        "attn_uses_sequence_id": False,
        "alibi": True,
        "alibi_bias_max": 8,
    }
)
"""Entries of ``attn_config`` that can have no other value."""


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """The block about attention."""

    keys: frozenset[str] = frozenset({"attn_config"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Limits, scale and dropout.

        Raises:
            ValueError: an entry that cannot be held.
        """
        block = theirs.get("attn_config") or {}
        for name, usual in _USUAL.items():
            value = block.get(name)
            if value is not None and value != usual:
                raise ValueError(
                    f"config.json has attn_config.{name} {value!r}; only {usual!r} is supported"
                )
        return {
            "model_config.clip_qkv": block.get("clip_qkv"),
            "model_config.softmax_scale": block.get("softmax_scale"),
            "model_config.attention_dropout_rate": float(block.get("attn_pdrop") or 0.0),
        }

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The block."""
        model = config.model_config
        block = {"clip_qkv": model.clip_qkv, "softmax_scale": model.softmax_scale}
        return {
            "attn_config": {**_USUAL, **block, "attn_pdrop": model.attention_dropout_rate},
        }


def _places(spec: ModelSpec) -> Iterator[Place]:
    places = Places(spec)
    yield from places.whole("wte.weight", "embedding.word_embeddings.weight")
    for number, layer in enumerate(spec.layers):
        if layer is None:
            continue
        theirs, ours = f"blocks.{number}", f"encoder.layers.{number}"
        assert isinstance(layer.attention, AttentionSpec), "heads have one width"
        rows = all_rows(layer.attention)
        yield from places.norm(f"{theirs}.norm_1", f"{ours}.input_norm")
        yield from places.linear(f"{theirs}.attn.Wqkv", f"{ours}.attention.qkv_proj", rows)
        yield from places.linear(f"{theirs}.attn.out_proj", f"{ours}.attention.out_proj")
        yield from places.norm(f"{theirs}.norm_2", f"{ours}.post_attention_norm")
        yield from places.linear(f"{theirs}.ffn.up_proj", f"{ours}.mlp.mapping")
        yield from places.linear(f"{theirs}.ffn.down_proj", f"{ours}.mlp.projection")
    yield from places.norm("norm_f", "encoder.final_norm")
    yield from places.whole("lm_head.weight", "output_layer.weight")


FAMILY = Family(
    name="mpt",
    model_type="mpt",
    architecture="MptForCausalLM",
    fixed={
        **dict.fromkeys(llama.BIASES, False),
        "model_config.position_embedding_type": "alibi",
        "model_config.normalization": "LayerNorm",
        "model_config.norm_has_bias": False,
        "model_config.hidden_act": "gelu",
        "model_config.gated_linear_unit": False,
    },
    rules=(
        Key("n_layers", "model_config.num_layers"),
        Key("d_model", "model_config.hidden_size"),
        Heads("n_heads", groups=None, width=None, hidden="d_model"),
        Follows("model_config.ffn_hidden_size", lambda theirs: 4 * value_of(theirs, "d_model")),
        Length("max_seq_len", 2048),
        AttentionBlock(),
        Only("expansion_ratio", (4,), 4),
        Only("no_bias", (True,), True),
        Only("logit_scale", (None,)),
        Key("layer_norm_epsilon", "model_config.norm_epsilon", 1e-5, float),
        Key("initializer_range", "model_config.init_method_std", 0.02, float),
        Key("resid_pdrop", "model_config.hidden_dropout_rate", 0.0, float),
        tied_head(True),
    ),
    places=_places,
    prefix="transformer.",
    neutral=frozenset({"emb_pdrop", "embedding_fraction", "init_config", "init_device"})
    | {"learned_pos_emb", "norm_type", "tokenizer_name", "verbose"},
    presets={
        "mpt_7b": {
            "model_type": "mpt",
            "vocab_size": 50432,
            "n_layers": 32,
            "d_model": 4096,
            "n_heads": 32,
            "max_seq_len": 2048,
            "eos_token_id": 0,
        }
    },
)
