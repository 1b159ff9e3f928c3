# SPDX-License-Identifier: Apache-2.0
"""Megatron-core's names of parameters, from any of the spellings in its checkpoints.

The names here, and how a parameter is split, are the description's: ``ModelSpec.by_megatron_name``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mindspeed_ms.models.model import EMBEDDING, HEAD, ModelSpec

__all__ = ["EMBEDDING", "HEAD"]

Describe = Callable[[Mapping[str, Any]], ModelSpec]
"""What a checkpoint says of itself -> the model it holds."""

_CURRENT = (
    # Transformer Engine fuses a norm into the product behind it.
    (
        r"\.self_attention\.((linear_qkv|in_proj)\.)?layer_norm_(weight|bias)$",
        r".input_layernorm.\3",
    ),
    (r"\.linear_(q|kv)_up_proj\.layer_norm_(weight|bias)$", r".\1_layernorm.\2"),
    (r"\.mlp\.(linear_fc1\.)?layer_norm_(weight|bias)$", r".pre_mlp_layernorm.\2"),
    (r"\.experts\.(linear_fc[12])\.weight(\d+)$", r".experts.local_experts.\2.\1.weight"),
    # Models from before Megatron-core, and from before 2023.
    (r"^word_embeddings_for_head\.", "output_layer."),
    (r"^word_embeddings\.", "embedding.word_embeddings."),
    (r"^language_model\.(encoder|transformer)\.", "decoder."),
    (r"^language_model\.", ""),
    (r"\.attention\.(?=query_key_value|dense)", ".self_attention."),
    (r"\.query_key_value\.", ".linear_qkv."),
    (r"\.self_attention\.dense\.", ".self_attention.linear_proj."),
    (r"\.dense_h_to_4h\.", ".linear_fc1."),
    (r"\.dense_4h_to_h\.", ".linear_fc2."),
    (r"\.input_norm\.", ".input_layernorm."),
    (r"\.post_attention_(norm|layernorm)\.", ".pre_mlp_layernorm."),
    (r"\.final_norm\.", ".final_layernorm."),
)


def current_name(name: str) -> str:
    """Megatron-core's name, from any of its spellings.

    >>> current_name("language_model.encoder.layers.3.self_attention.query_key_value.weight")
    'decoder.layers.3.self_attention.linear_qkv.weight'
    >>> current_name("decoder.layers.0.mlp.experts.linear_fc1.weight5")
    'decoder.layers.0.mlp.experts.local_experts.5.linear_fc1.weight'
    """
    for pattern, replacement in _CURRENT:
        name = re.sub(pattern, replacement, name)
    return name


_LAYER = re.compile(r"\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """Number of the layer of the main stack that a parameter belongs to."""
    match = _LAYER.search(name)
    return int(match[1]) if match and ".mtp." not in f".{name}" else None


def expert_of(name: str) -> int | None:
    """Number of the expert that a parameter belongs to."""
    match = _EXPERT.search(name)
    return int(match[1]) if match else None


def with_layer(name: str, layer: int) -> str:
    """The name with another layer."""
    return _LAYER.sub(f".layers.{layer}.", name, count=1)


def with_expert(name: str, expert: int) -> str:
    """The name with another expert."""
    return _EXPERT.sub(f".local_experts.{expert}.", name)


def get(args: Any, name: str, default: Any = None) -> Any:
    """An attribute of saved arguments that may be absent or None."""
    value = getattr(args, name, None)
    return default if value is None else value
