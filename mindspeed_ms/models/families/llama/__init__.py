# SPDX-License-Identifier: Apache-2.0
"""Llama 2, 3 and 3.1 to 3.3, and the rules that its relatives share."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.llama.presets import PRESETS
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import (
    Activation,
    Biases,
    Heads,
    Key,
    Length,
    Rule,
    tied_head,
)

FIXED: dict[str, Any] = {
    "model_config.position_embedding_type": "rope",
    "model_config.normalization": "RMSNorm",
    "model_config.qkv_has_bias": False,
    "model_config.out_proj_has_bias": False,
    "model_config.mlp_has_bias": False,
    "model_config.hidden_dropout_rate": 0.0,
}

ATTENTION_BIAS = Biases(
    "attention_bias", ("model_config.qkv_has_bias", "model_config.out_proj_has_bias")
)


BIASES = (
    *("model_config.qkv_has_bias", "model_config.out_proj_has_bias"),
    "model_config.mlp_has_bias",
)
"""Fields of a switch for all biases."""


def rules(
    *more: Rule,
    activation: Rule = Activation(),  # noqa: B008 - it is frozen
    heads: Rule = Heads(),  # noqa: B008 - it is frozen
    rope: Rule = Rope(),  # noqa: B008 - it is frozen
    epsilon: float = 1e-6,
    epsilon_key: str = "rms_norm_eps",
    is_tied: bool = False,
    dropout: float = 0.0,
    std: float = 0.02,
) -> tuple[Rule, ...]:
    """Rules of a model like Llama.

    Args:
        more: further ones.
        activation: of the feed-forward block.
        heads: of attention.
        rope: of positions.
        epsilon: of norms, in a file that names none.
        epsilon_key: its key.
        is_tied: whether the head uses the embedding, in a file that does not say.
        dropout: of the weights of attention, in a file that names none.
        std: of initial weights, in a file that names none.
    """
    return (
        Key("num_hidden_layers", "model_config.num_layers"),
        Key("hidden_size", "model_config.hidden_size"),
        Key("intermediate_size", "model_config.ffn_hidden_size"),
        heads,
        activation,
        Length(),
        rope,
        Key(epsilon_key, "model_config.norm_epsilon", epsilon, float),
        Key("initializer_range", "model_config.init_method_std", std, float),
        Key("attention_dropout", "model_config.attention_dropout_rate", dropout, float),
        tied_head(is_tied),
        *more,
    )


FAMILY = Family(
    name="llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    fixed=FIXED,
    rules=rules(ATTENTION_BIAS, Biases("mlp_bias", ("model_config.mlp_has_bias",))),
    places=Decoder(),
    neutral=frozenset({"pretraining_tp"}),
    presets=PRESETS,
)
