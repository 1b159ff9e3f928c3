# SPDX-License-Identifier: Apache-2.0
"""OPT: learned positions behind two rows that stand for none, blocks with relu."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import (
    Activation,
    Biases,
    Fields,
    Heads,
    Key,
    Length,
    Only,
    tied_head,
    value_of,
)


@dataclass(frozen=True, slots=True)
class SameWidth:
    """Embeddings as wide as the layers."""

    keys: frozenset[str] = frozenset({"word_embed_proj_dim"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Nothing; the width is checked.

        Raises:
            ValueError: another width, as OPT 350M has.
        """
        hidden = value_of(theirs, "hidden_size")
        width = value_of(theirs, "word_embed_proj_dim", hidden)
        if width != hidden:
            raise ValueError(
                f"config.json has word_embed_proj_dim {width} and hidden_size {hidden}; only equal "
                "ones are supported"
            )
        return {}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The hidden size."""
        return {"word_embed_proj_dim": config.model_config.hidden_size}


def _opt(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": 50272,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "ffn_dim": 4 * hidden,
        "word_embed_proj_dim": hidden,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


FAMILY = Family(
    name="opt",
    model_type="opt",
    architecture="OPTForCausalLM",
    fixed={
        "model_config.position_embedding_type": "learned_absolute",
        "model_config.position_embedding_offset": 2,
        "model_config.normalization": "LayerNorm",
    },
    rules=(
        Key("num_hidden_layers", "model_config.num_layers"),
        Key("hidden_size", "model_config.hidden_size"),
        Key("ffn_dim", "model_config.ffn_hidden_size"),
        SameWidth(),
        Heads(groups=None, width=None),
        Activation("activation_function", "relu", is_gated=False),
        Length(),
        Biases("enable_bias", llama.BIASES, True),
        Key("init_std", "model_config.init_method_std", 0.02, float),
        Key("attention_dropout", "model_config.attention_dropout_rate", 0.0, float),
        Key("dropout", "model_config.hidden_dropout_rate", 0.1, float),
        Only("do_layer_norm_before", (True,), True),
        Only("_remove_final_layer_norm", (False,), False),
        Only("layer_norm_elementwise_affine", (True,), True),
        tied_head(True),
    ),
    places=Decoder(
        root="model.decoder",
        query_words=("q_proj", "k_proj", "v_proj", "out_proj"),
        norms={
            "input_norm": "self_attn_layer_norm",
            "post_attention_norm": "final_layer_norm",
        },
        block="",
        dense=("fc1", "fc2"),
        final="final_layer_norm",
    ),
    neutral=frozenset({"activation_dropout", "layerdrop", "prefix"}),
    presets={
        "opt_125m": _opt(12, 768, 12),
        "opt_1.3b": _opt(24, 2048, 32),
        "opt_6.7b": _opt(32, 4096, 32),
    },
)
