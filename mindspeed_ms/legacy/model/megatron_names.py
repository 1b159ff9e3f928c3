"""Megatron-core's names of the parameters of a GPT model.

Layouts are equal (query/key/value rows grouped alike, [gate; up] stacked alike), so only names
differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.core.parameter import named_parameters, shard_of

_EMBEDDING = "embedding.word_embeddings.weight"

_SUBSTITUTIONS = (
    (r"^language_model\.embedding\.", "embedding."),
    (r"^language_model\.encoder\.", "decoder."),
    (r"^language_model\.output_layer\.", "output_layer."),
    (r"\.input_norm\.", ".input_layernorm."),
    (r"\.post_attention_norm\.", ".pre_mlp_layernorm."),
    (r"\.final_norm\.", ".final_layernorm."),
    (r"\.attn_post_norm\.", ".post_self_attn_layernorm."),
    (r"\.ffn_post_norm\.", ".post_mlp_layernorm."),
    (r"\.attention\.qkv_proj\.", ".self_attention.linear_qkv."),
    (r"\.attention\.out_proj\.", ".self_attention.linear_proj."),
    (r"\.attention\.(q|k)_layernorm\.", r".self_attention.\1_layernorm."),
    (r"\.mlp\.mapping\.", ".mlp.linear_fc1."),
    (r"\.mlp\.projection\.", ".mlp.linear_fc2."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


def megatron_name(name: str) -> str:
    """Name of a parameter in Megatron-core (layers counted over the whole model).

    >>> megatron_name("language_model.encoder.layers.3.attention.qkv_proj.weight")
    'decoder.layers.3.self_attention.linear_qkv.weight'
    """
    for pattern, replacement in _SUBSTITUTIONS:
        name = re.sub(pattern, replacement, name)
    return name


def load_megatron_parameters(model: Cell, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill a model from unsharded arrays under Megatron-core's names; each rank takes its part.

    The model may be one chunk of a pipeline stage: arrays of layers, embedding or head that lie
    elsewhere are left alone. The head's copy of a tied embedding gets the embedding's values.

    Raises:
        ValueError: names that do not correspond one to one, or a shape that differs.
    """
    parameters = {megatron_name(name): param for name, param in named_parameters(model)}
    sources = {
        name: _EMBEDDING if shard_of(param).shared else name for name, param in parameters.items()
    }
    missing = set(sources.values()) - arrays.keys()
    unexpected = {name for name in arrays if _belongs_to(name, model)} - set(sources.values())
    if missing or unexpected:
        raise ValueError(
            f"weights and model do not correspond; missing: {sorted(missing)}, unexpected: "
            f"{sorted(unexpected)}: check the model's configuration"
        )
    for name, param in parameters.items():
        values = arrays[sources[name]]
        full_shape = shard_of(param).full_shape(param.shape)
        if values.shape != full_shape:
            raise ValueError(
                f"{name} has shape {values.shape}, the model needs {full_shape}; check the "
                "model's configuration"
            )
        part = shard_of(param).local_slice(values.astype(np.float32))
        ops.copy_cast_(param, memory.from_numpy(np.ascontiguousarray(part)))


def _belongs_to(name: str, model: Cell) -> bool:
    """Whether an array of the whole model is for this chunk, or for no chunk at all."""
    layer = re.match(r"decoder\.layers\.(\d+)\.", name)
    if layer is not None:
        index = int(layer[1])
        is_known = index < model.config.num_layers
        return not is_known or index in layers_in(model)
    if name.startswith("embedding."):
        return model.pre_process
    if name.startswith(("decoder.final_layernorm.", "output_layer.")):
        return model.post_process
    return True


def layers_in(model: Cell) -> set[int]:
    """Global numbers, from 0, of the layers a model (or one chunk of it) holds."""
    return {layer.layer_number - 1 for layer in model.language_model.encoder.layers}
