# SPDX-License-Identifier: Apache-2.0
"""PanGu-alpha: GPT-2's layers with separate matrices, and a last layer of learned queries.

Source: the ``config.json`` and tensor names of ``pangu_2_6B`` on the hub; MindFormers' sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.gpt2 import Inner, activation_rule
from mindspeed_ms.models.families.place import Place, Places, separate_attention
from mindspeed_ms.models.families.rules import (
    Heads,
    Key,
    Length,
    Only,
    tied_head,
)
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.models.model import ModelSpec

_WORDS = ("q_proj", "k_proj", "v_proj", "c_proj")


def _layer(places: Places, number: int, ours: str, layer: LayerSpec) -> Iterator[Place]:
    theirs = f"h.{number}"
    yield from places.norm(f"{theirs}.ln_1", f"{ours}.input_norm")
    yield from separate_attention(places, f"{theirs}.attn", f"{ours}.attention", layer, _WORDS)
    yield from places.norm(f"{theirs}.ln_2", f"{ours}.post_attention_norm")
    yield from places.linear(f"{theirs}.mlp.c_fc", f"{ours}.mlp.mapping")
    yield from places.linear(f"{theirs}.mlp.c_proj", f"{ours}.mlp.projection")


def _places(spec: ModelSpec) -> Iterator[Place]:
    """The layer of queries is the last of theirs; the final norm stands before it."""
    places = Places(spec)
    yield from places.whole("wte.weight", "embedding.word_embeddings.weight")
    yield from places.whole("wpe.weight", "embedding.position_embeddings.weight")
    yield from places.whole("wqe.weight", "query_layer.query_embeddings.weight")
    for number, layer in enumerate(spec.layers):
        if layer is not None:
            yield from _layer(places, number, f"encoder.layers.{number}", layer)
    if spec.query is not None:
        ours = "query_layer.transformer_layer"
        yield from _layer(places, len(spec.layers), ours, spec.query.layer)
    yield from places.norm("ln_f", "encoder.final_norm")
    yield from places.whole("lm_head.weight", "output_layer.weight")


def _pangu(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_pangu",
        "vocab_size": 40000,
        "num_layers": layers,
        "hidden_size": hidden,
        "num_heads": heads,
        "max_position_embeddings": 1024,
        "activation_function": "gelu_new",
        "bos_token_id": 9,
        "eos_token_id": 9,
    }


FAMILY = Family(
    name="gpt_pangu",
    model_type="gpt_pangu",
    architecture="GPTPanguForCausalLM",
    fixed={
        "model_config.position_embedding_type": "learned_absolute",
        "model_config.use_query_layer": True,
    },
    rules=(
        Key(
            "num_layers",
            "model_config.num_layers",
            reads=lambda layers: layers - 1,
            writes=lambda layers: layers + 1,
        ),
        Key("hidden_size", "model_config.hidden_size"),
        Heads("num_heads", groups=None, width=None),
        Inner("intermediate_size", "hidden_size"),
        Length(),
        activation_rule("gelu"),
        Key("layer_norm_epsilon", "model_config.norm_epsilon", 1e-5, float),
        Key("initializer_range", "model_config.init_method_std", 0.02, float),
        Key("attn_pdrop", "model_config.attention_dropout_rate", 0.1, float),
        Key("resid_pdrop", "model_config.hidden_dropout_rate", 0.1, float),
        tied_head(True),
        Only("scale_attn_weights", (True,), True),
    ),
    places=_places,
    prefix="transformer.",
    neutral=frozenset(
        {
            "embd_pdrop",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        }
    ),
    presets={
        "pangualpha_2_6b": _pangu(32, 2560, 32),
        "pangualpha_13b": _pangu(40, 5120, 40),
    },
)
