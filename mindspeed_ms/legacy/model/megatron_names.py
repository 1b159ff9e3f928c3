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
from mindspeed_ms.core.parameter import named_buffers, named_parameters, shard_of
from mindspeed_ms.formats.names import megatron_name
from mindspeed_ms.legacy.model.moe.experts import local_experts

_EMBEDDING = "embedding.word_embeddings.weight"

__all__ = ["layers_in", "load_megatron_parameters", "megatron_name"]


def load_megatron_parameters(model: Cell, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill a model from unsharded arrays under Megatron-core's names; each rank takes its part.

    The model may be one chunk of a pipeline stage with some of the experts: arrays of what lies
    elsewhere are left alone. The head's copy of a tied embedding gets the embedding's values.
    Experts may be named as single blocks or as grouped ones, whichever the model has.

    Raises:
        ValueError: names that do not correspond one to one, or a shape that differs.
    """
    held = [*named_parameters(model), *named_buffers(model)]
    parameters = {_single_expert_name(megatron_name(name)): param for name, param in held}
    arrays = {_single_expert_name(name): values for name, values in arrays.items()}
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


def _single_expert_name(name: str) -> str:
    """Name of an expert's matrix in a block of its own, for one among grouped ones too."""
    return re.sub(
        r"\.experts\.(linear_fc[12])\.weight(\d+)$", r".experts.local_experts.\2.\1.weight", name
    )


def _belongs_to(name: str, model: Cell) -> bool:
    """Whether an array of the whole model is for this chunk, or for no chunk at all."""
    expert = re.search(r"\.local_experts\.(\d+)\.", name)
    if expert is not None:
        index = int(expert[1])
        is_known = index < model.config.moe_config.num_experts
        if is_known and index not in local_experts(model.config):
            return False
    layer = re.match(r"decoder\.layers\.(\d+)\.", name)
    if layer is not None:
        index = int(layer[1])
        is_known = index < model.config.num_layers
        return not is_known or index in layers_in(model)
    if name.startswith("embedding."):
        return model.pre_process
    if name.startswith(("decoder.final_layernorm.", "output_layer.", "mtp.")):
        return model.post_process
    return True


def layers_in(model: Cell) -> set[int]:
    """Global numbers, from 0, of the layers a model (or one chunk of it) holds."""
    return {layer.layer_number - 1 for layer in model.language_model.encoder.layers}
