# SPDX-License-Identifier: Apache-2.0
"""GPT-J, and CodeGen, whose queries, keys and values lie in four parts of one matrix.

Both have blocks side by side behind one norm, rotate pairs of neighbours, and have biases in
feed-forward blocks and in the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.attention import AttentionSpec
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.gpt2 import SUMMARY, Inner, activation_rule, places_with
from mindspeed_ms.models.families.place import Place, Places, query_rows, separate_attention
from mindspeed_ms.models.families.rules import Fields, Heads, Key, Length, tied_head, value_of
from mindspeed_ms.models.layer import LayerSpec

_WORDS = ("fc_in", "fc_out")
_PARTS = 4
"""Devices that CodeGen was trained on, whose matrices lie one after the other."""


@dataclass(frozen=True, slots=True)
class RotatedChannels:
    """``rotary_dim``, the channels of a head that are rotated."""

    default: int = 64
    keys: frozenset[str] = frozenset({"rotary_dim"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The share.

        Raises:
            ValueError: more channels than a head has.
        """
        channels = value_of(theirs, "rotary_dim", self.default)
        width = value_of(theirs, "n_embd") // value_of(theirs, "n_head")
        if channels > width:
            raise ValueError(
                f"config.json has rotary_dim {channels} for heads of {width} channels; give a "
                f"number up to {width}"
            )
        return {"model_config.rotary_percent": channels / width}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The channels."""
        model = config.model_config
        return {"rotary_dim": round(model.rotary_percent * (model.kv_channels or 0))}


def _separate(places: Places, theirs: str, ours: str, layer: LayerSpec) -> Iterator[Place]:
    words = ("q_proj", "k_proj", "v_proj", "out_proj")
    yield from separate_attention(places, theirs, ours, layer, words)


def _parted(places: Places, theirs: str, ours: str, layer: LayerSpec) -> Iterator[Place]:
    """Rows of each part in turn: its queries, its values, its keys."""
    attention = layer.attention
    assert isinstance(attention, AttentionSpec), "heads have one width"
    heads = attention.num_heads // _PARTS
    kinds = [query_rows(attention, kind) for kind in "qvk"]
    parts = [slice(part * heads, (part + 1) * heads) for part in range(_PARTS)]
    rows = [run for part in parts for runs in kinds for run in runs[part]]
    yield from places.linear(f"{theirs}.qkv_proj", f"{ours}.qkv_proj", rows)
    yield from places.linear(f"{theirs}.out_proj", f"{ours}.out_proj")


@dataclass(frozen=True, slots=True)
class HeadsOfParts:
    """Heads that the parts share out evenly."""

    plain: Heads

    @property
    def keys(self) -> frozenset[str]:
        """As of other models."""
        return self.plain.keys

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The heads.

        Raises:
            ValueError: another number than a multiple of four.
        """
        heads = value_of(theirs, self.plain.heads)
        if heads % _PARTS:
            raise ValueError(
                f"config.json has {self.plain.heads} {heads}; in this type of model heads lie in "
                f"{_PARTS} equal parts"
            )
        return self.plain.read(theirs)

    def write(self, config: AllConfig) -> dict[str, Any]:
        """The heads."""
        return self.plain.write(config)


_HEADS = Heads("n_head", groups=None, width=None, hidden="n_embd")


def _gptj(model_type: str, layers: int, hidden: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "n_layer": layers,
        "n_embd": hidden,
        "n_head": heads,
        "n_positions": 2048,
        "rotary_dim": 32 if hidden == 1024 else 64,
        "bos_token_id": 50256 if model_type == "gptj" else 1,
        "eos_token_id": 50256,
    }


FAMILY = Family(
    name="gptj",
    model_type="gptj",
    architecture="GPTJForCausalLM",
    fixed={
        "model_config.position_embedding_type": "rope",
        "model_config.rotary_interleaved": True,
        "model_config.use_parallel_residual": True,
        "model_config.shares_input_norm": True,
        "model_config.qkv_has_bias": False,
        "model_config.out_proj_has_bias": False,
        "model_config.head_has_bias": True,
    },
    rules=(
        Key("n_layer", "model_config.num_layers"),
        Key("n_embd", "model_config.hidden_size"),
        _HEADS,
        Inner(),
        Length("n_positions"),
        RotatedChannels(),
        activation_rule("gelu_new"),
        Key("layer_norm_epsilon", "model_config.norm_epsilon", 1e-5, float),
        Key("initializer_range", "model_config.init_method_std", 0.02, float),
        Key("attn_pdrop", "model_config.attention_dropout_rate", 0.0, float),
        Key("resid_pdrop", "model_config.hidden_dropout_rate", 0.0, float),
        tied_head(False),
    ),
    places=places_with(_separate, _WORDS),
    prefix="transformer.",
    neutral=SUMMARY
    | {"embd_pdrop", "gradient_checkpointing", "n_ctx", "rotary", "scale_attn_weights"}
    | {"task_specific_params", "tokenizer_class"},
    presets={"gptj_6b": _gptj("gptj", 28, 4096, 16, 50400)},
)

CODEGEN = replace(
    FAMILY,
    name="codegen",
    model_type="codegen",
    architecture="CodeGenForCausalLM",
    rules=tuple(HeadsOfParts(_HEADS) if rule is _HEADS else rule for rule in FAMILY.rules),
    places=places_with(_parted, _WORDS),
    presets={
        "codegen_350m": _gptj("codegen", 20, 1024, 16, 51200),
        "codegen_2b": _gptj("codegen", 32, 2560, 32, 51200),
        "codegen_6b": _gptj("codegen", 33, 4096, 16, 51200),
        "codegen_16b": _gptj("codegen", 34, 6144, 24, 51200),
    },
)
