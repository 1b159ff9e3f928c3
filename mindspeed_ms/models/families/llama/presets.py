# SPDX-License-Identifier: Apache-2.0
"""Sizes that Llama models come in."""

from __future__ import annotations

from typing import Any


def _llama2(layers: int, hidden: int, inner: int, heads: int, groups: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 32000,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "llama2_7b": _llama2(32, 4096, 11008, 32, 32),
    "llama2_13b": _llama2(40, 5120, 13824, 40, 40),
    "llama2_70b": _llama2(80, 8192, 28672, 64, 8),
    "llama3_8b": {
        **_llama2(32, 4096, 14336, 32, 8),
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
}
