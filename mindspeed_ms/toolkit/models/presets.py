# SPDX-License-Identifier: Apache-2.0
"""Sizes that models come in, by name: those of the families, and MindFormers' names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.yaml_reader import read_yaml
from mindspeed_ms.models.families.registry import FAMILIES

_FOLDER = Path(__file__).parent / "presets"

CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    "llama": {
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": {
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "qwen3": {
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
    },
    "mistral": {
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mixtral": {
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_pangu": {
        "vocab_size": 40000,
        "max_position_embeddings": 1024,
        "hidden_size": 2560,
        "num_layers": 32,
        "num_heads": 32,
        "activation_function": "gelu_new",
        "bos_token_id": 9,
        "eos_token_id": 9,
    },
}
"""Model type -> what a configuration without arguments has, as in ``transformers``."""


def presets() -> Mapping[str, Mapping[str, Any]]:
    """Name of a size -> its ``config.json``."""
    found: dict[str, Mapping[str, Any]] = {}
    for family in FAMILIES:
        found |= family.presets
    for path in sorted(_FOLDER.glob("*.yaml")):
        found |= read_yaml(path)
    return MappingProxyType(found)
