# SPDX-License-Identifier: Apache-2.0
"""GPT-NeoX and Pythia: attention and feed-forward block side by side, part of a head rotated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place, Places
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import (
    Activation,
    Biases,
    Heads,
    Key,
    Length,
    tied_head,
)
from mindspeed_ms.models.model import ModelSpec

_NAMES = (
    ("attention.query_key_value", "attention.qkv_proj"),
    ("attention.dense", "attention.out_proj"),
    ("mlp.dense_h_to_4h", "mlp.mapping"),
    ("mlp.dense_4h_to_h", "mlp.projection"),
)


def _places(spec: ModelSpec) -> Iterator[Place]:
    """Query, key and value of a head lie together, here as there."""
    places = Places(spec)
    yield from places.whole("gpt_neox.embed_in.weight", "embedding.word_embeddings.weight")
    for number in range(len(spec.layers)):
        theirs, ours = f"gpt_neox.layers.{number}", f"encoder.layers.{number}"
        yield from places.norm(f"{theirs}.input_layernorm", f"{ours}.input_norm")
        yield from places.norm(f"{theirs}.post_attention_layernorm", f"{ours}.post_attention_norm")
        for word, own in _NAMES:
            yield from places.linear(f"{theirs}.{word}", f"{ours}.{own}")
    yield from places.norm("gpt_neox.final_layer_norm", "encoder.final_norm")
    yield from places.whole("embed_out.weight", "output_layer.weight")


def _pythia(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "vocab_size": 50432 if hidden > 2560 else 50304,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


FAMILY = Family(
    name="gpt_neox",
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    fixed={
        "model_config.position_embedding_type": "rope",
        "model_config.normalization": "LayerNorm",
        "model_config.mlp_has_bias": True,
    },
    rules=(
        Key("num_hidden_layers", "model_config.num_layers"),
        Key("hidden_size", "model_config.hidden_size"),
        Key("intermediate_size", "model_config.ffn_hidden_size"),
        Heads(groups=None, width=None),
        Activation(default="gelu", is_gated=False),
        Length(),
        Rope(share=0.25, base_key="rotary_emb_base", share_key="rotary_pct"),
        Key("layer_norm_eps", "model_config.norm_epsilon", 1e-5, float),
        Key("initializer_range", "model_config.init_method_std", 0.02, float),
        Key("attention_dropout", "model_config.attention_dropout_rate", 0.0, float),
        Key("hidden_dropout", "model_config.hidden_dropout_rate", 0.0, float),
        Key("use_parallel_residual", "model_config.use_parallel_residual", True),
        Biases(
            "attention_bias",
            ("model_config.qkv_has_bias", "model_config.out_proj_has_bias"),
            True,
        ),
        tied_head(False),
    ),
    places=_places,
    neutral=frozenset({"classifier_dropout", "is_decoder", "rope_theta", "partial_rotary_factor"}),
    presets={
        "pythia_70m": _pythia(6, 512, 8),
        "pythia_160m": _pythia(12, 768, 12),
        "pythia_410m": _pythia(24, 1024, 16),
        "pythia_1b": _pythia(16, 2048, 8),
        "pythia_6.9b": _pythia(32, 4096, 32),
        "gpt_neox_20b": _pythia(44, 6144, 64),
    },
)
