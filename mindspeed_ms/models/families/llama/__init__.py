"""Llama 2, 3 and 3.1, and the parts that its relatives share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.llama.presets import PRESETS
from mindspeed_ms.models.families.place import Place, Places, gated_block, separate_attention
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads, Key, Length, Only, Rule
from mindspeed_ms.models.feed_forward import MLPSpec
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.models.model import ModelSpec

FIXED: dict[str, Any] = {
    "model_config.position_embedding_type": "rope",
    "model_config.normalization": "RMSNorm",
    "model_config.hidden_act": "swiglu",
    "model_config.qkv_has_bias": False,
    "model_config.out_proj_has_bias": False,
    "model_config.mlp_has_bias": False,
    "model_config.hidden_dropout_rate": 0.0,
}

RULES: tuple[Rule, ...] = (
    Key("num_hidden_layers", "model_config.num_layers"),
    Key("hidden_size", "model_config.hidden_size"),
    Key("intermediate_size", "model_config.ffn_hidden_size"),
    Heads(),
    Only("hidden_act", ("silu", "swish"), "silu"),
    Length(),
    Rope(),
    Key("rms_norm_eps", "model_config.norm_epsilon", 1e-6, float),
    Key("initializer_range", "model_config.init_method_std", 0.02, float),
    Key("attention_dropout", "model_config.attention_dropout_rate", 0.0, float),
    Key(
        "tie_word_embeddings",
        "model_config.untie_embeddings_and_output_weights",
        False,
        lambda tied: not tied,
        lambda untied: not untied,
    ),
)
"""Of every model like Llama."""


def decoder_places(places: Places) -> Iterator[Place]:
    """Tensors of a model like Llama with dense layers."""
    yield from places.whole("model.embed_tokens.weight", "embedding.word_embeddings.weight")
    for number, layer in enumerate(places.spec.layers):
        if layer is not None:
            yield from attention_places(places, number, layer)
            assert isinstance(layer.mlp, MLPSpec), "every layer is dense"
            yield from gated_block(
                places,
                f"model.layers.{number}.mlp",
                f"encoder.layers.{number}.mlp",
                layer.mlp,
                ("gate_proj", "up_proj", "down_proj"),
            )
    yield from head_places(places)


def attention_places(places: Places, number: int, layer: LayerSpec) -> Iterator[Place]:
    """Norms and attention of a layer."""
    theirs, ours = f"model.layers.{number}", f"encoder.layers.{number}"
    yield from places.norm(f"{theirs}.input_layernorm", f"{ours}.input_norm")
    words = ("q_proj", "k_proj", "v_proj", "o_proj")
    yield from separate_attention(places, f"{theirs}.self_attn", f"{ours}.attention", layer, words)
    yield from places.norm(f"{theirs}.post_attention_layernorm", f"{ours}.post_attention_norm")


def head_places(places: Places) -> Iterator[Place]:
    """Final norm and head."""
    yield from places.norm("model.norm", "encoder.final_norm")
    yield from places.whole("lm_head.weight", "output_layer.weight")


def _places(spec: ModelSpec) -> Iterator[Place]:
    return decoder_places(Places(spec))


FAMILY = Family(
    name="llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    fixed=FIXED,
    rules=(
        *RULES,
        Biases("attention_bias", ("model_config.qkv_has_bias", "model_config.out_proj_has_bias")),
        Biases("mlp_bias", ("model_config.mlp_has_bias",)),
    ),
    places=_places,
    neutral=frozenset({"pretraining_tp"}),
    presets=PRESETS,
)
