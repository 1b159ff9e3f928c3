# SPDX-License-Identifier: Apache-2.0
"""The one builder of small models for tests."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config import TransformerConfig

SIZES: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 16,
        "ffn_hidden_size": 24,
        "seq_length": 8,
        "compute_dtype": "float32",
        "init_method_std": 0.3,  # far from zero, so that every part of a model counts
    }
)

SCRIPT: Mapping[str, Any] = MappingProxyType(
    {
        **{name: size for name, size in SIZES.items() if name != "init_method_std"},
        "position_embedding_type": "rope",
    }
)
"""As scripts of the predecessor state it."""

LLAMA: Mapping[str, Any] = MappingProxyType(
    {"hidden_act": "swiglu", "normalization": "RMSNorm", "position_embedding_type": "rope"}
)

NO_BIAS: Mapping[str, Any] = MappingProxyType(
    {"qkv_has_bias": False, "out_proj_has_bias": False, "mlp_has_bias": False}
)


TINY_GPT2: Mapping[str, Any] = MappingProxyType(
    {
        "type": "GPT2Config",
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "seq_length": 16,
        "vocab_size": 64,
        "compute_dtype": "float32",
    }
)
"""The same in MindFormers' words, for trainers and tasks."""


def model_config(*styles: Mapping[str, Any], **changes: Any) -> TransformerConfig:
    """A configuration of ``SIZES`` with the settings of styles, then those of the caller."""
    values = dict(SIZES)
    for style in (*styles, changes):
        values |= style
    return TransformerConfig(**values)
