# SPDX-License-Identifier: Apache-2.0
"""Falcon: blocks side by side behind one norm or two, one or few heads of keys and values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.bloom import NORMS, places_with
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.gpt2 import Inner
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import (
    Activation,
    Biases,
    Fields,
    Heads,
    Key,
    Length,
    tied_head,
    value_of,
)
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.models.scores import alibi_slopes

_POSITIONS = "model_config.position_embedding_type"
_PARALLEL, _SHARES = "model_config.use_parallel_residual", "model_config.shares_input_norm"


@dataclass(frozen=True, slots=True)
class Shape:
    """Groups of heads, and how the blocks of a layer lie: there are two generations."""

    keys: frozenset[str] = frozenset(
        {
            *("num_attention_heads", "num_kv_heads", "multi_query", "parallel_attn"),
            *("new_decoder_architecture", "num_ln_in_parallel_attn"),
        }
    )

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Heads, groups, and norms.

        Raises:
            ValueError: norms that the class in ``transformers`` builds and does not use.
        """
        heads = value_of(theirs, "num_attention_heads")
        is_new = bool(value_of(theirs, "new_decoder_architecture", False))
        is_parallel = bool(value_of(theirs, "parallel_attn", True))
        norms = value_of(theirs, "num_ln_in_parallel_attn", 2 if is_new else 1)
        if (is_new and not is_parallel) or (norms == 2) > is_new or norms not in (1, 2):
            raise ValueError(
                f"config.json has num_ln_in_parallel_attn {norms} and parallel_attn {is_parallel} "
                f"with new_decoder_architecture {is_new}; that one has blocks side by side behind "
                "1 or 2 norms, models without it have 1"
            )
        groups = 1 if value_of(theirs, "multi_query", True) else heads
        groups = value_of(theirs, "num_kv_heads", heads) if is_new else groups
        head_fields = Heads(width=None).read({**theirs, "num_key_value_heads": groups})
        return {**head_fields, _PARALLEL: is_parallel, _SHARES: is_parallel and norms == 1}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The older generation where it holds the model; else the round trip shows it."""
        model = config.model_config
        heads, groups = model.num_attention_heads, model.num_kv_groups
        is_old = not model.use_parallel_residual or model.shares_input_norm
        is_new = model.use_parallel_residual and not (is_old and groups in (1, heads))
        written = {
            "num_attention_heads": heads,
            "new_decoder_architecture": is_new,
            "parallel_attn": model.use_parallel_residual,
            "multi_query": groups == 1,
            "num_kv_heads": groups if is_new else heads,
        }
        if is_new:
            written["num_ln_in_parallel_attn"] = 1 if model.shares_input_norm else 2
        return written


@dataclass(frozen=True, slots=True)
class Positions:
    """Rotations, or scores that fall with the distance before they are scaled."""

    rope: Rope = Rope()  # noqa: RUF009 - it is frozen

    @property
    def keys(self) -> frozenset[str]:
        """Those of rotations, and the switch."""
        return self.rope.keys | {"alibi"}

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The kind of positions.

        Raises:
            ValueError: slopes that ``transformers`` rounds, which then depend on absolute places.
        """
        if not value_of(theirs, "alibi", False):
            return {_POSITIONS: "rope", **self.rope.read(theirs)}
        heads = value_of(theirs, "num_attention_heads")
        if any(math.frexp(slope)[0] != 0.5 for slope in alibi_slopes(heads)):
            raise ValueError(
                f"config.json has alibi True with {heads} heads, whose slopes Falcon rounds to "
                "bfloat16; numbers of heads with powers of two for slopes are supported, up to 8"
            )
        return {_POSITIONS: "alibi", "model_config.scales_alibi": True}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The switch, and rotations."""
        is_alibi = config.model_config.position_embedding_type == "alibi"
        return {"alibi": is_alibi, **({} if is_alibi else self.rope.write(config))}


def _norms(layer: LayerSpec) -> tuple[str, str]:
    has_both = layer.is_parallel and layer.post_attention_norm is not None
    return ("ln_attn", "ln_mlp") if has_both else NORMS


def _falcon(layers: int, hidden: int, heads: int, groups: int) -> dict[str, Any]:
    is_new = groups > 1
    return {
        "model_type": "falcon",
        "vocab_size": 65024,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_kv_heads": groups if is_new else heads,
        "new_decoder_architecture": is_new,
        "multi_query": not is_new,
        "parallel_attn": True,
        "bias": False,
        "max_position_embeddings": 2048,
        "bos_token_id": 11,
        "eos_token_id": 11,
    }


FAMILY = Family(
    name="falcon",
    model_type="falcon",
    architecture="FalconForCausalLM",
    fixed={
        "model_config.normalization": "LayerNorm",
    },
    rules=(
        Key("num_hidden_layers", "model_config.num_layers"),
        Key("hidden_size", "model_config.hidden_size"),
        Shape(),
        Inner("ffn_hidden_size", "hidden_size"),
        Activation("activation", "gelu", is_gated=False),
        Biases("bias", llama.BIASES),
        Length(default=2048),
        Positions(),
        Key("layer_norm_epsilon", "model_config.norm_epsilon", 1e-5, float),
        Key("initializer_range", "model_config.init_method_std", 0.02, float),
        Key("attention_dropout", "model_config.attention_dropout_rate", 0.0, float),
        Key("hidden_dropout", "model_config.hidden_dropout_rate", 0.0, float),
        tied_head(True),
    ),
    places=places_with(_norms),
    prefix="transformer.",
    neutral=frozenset({"apply_residual_connection_post_layernorm"}),
    presets={
        "falcon_7b": _falcon(32, 4544, 71, 1),
        "falcon_40b": _falcon(60, 8192, 128, 8),
        "falcon_180b": _falcon(80, 14848, 232, 8),
    },
)
