"""Names of a GPT model's parameters, here and in Megatron-LM, and how each is split.

Here, and in Megatron-core after ``globally``, layers and experts are counted over the whole model.
Layouts of the tensors are equal (query/key/value rows grouped alike, [gate; up] stacked alike), so
only names differ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

EMBEDDING = "language_model.embedding.word_embeddings.weight"
"""The table of token embeddings; a tied head uses it."""

HEAD = "language_model.output_layer.weight"
"""An untied head."""

VOCABULARY = frozenset({EMBEDDING, HEAD})
"""Tensors whose rows are tokens, padded to a number that the tensor parallel size divides."""

_TO_MEGATRON = (
    (r"^language_model\.embedding\.", "embedding."),
    (r"^language_model\.encoder\.", "decoder."),
    (r"^language_model\.output_layer\.", "output_layer."),
    (r"^language_model\.mtp\.", "mtp."),
    (r"\.input_norm\.", ".input_layernorm."),
    (r"\.post_attention_norm\.", ".pre_mlp_layernorm."),
    (r"\.final_norm\.", ".final_layernorm."),
    (r"\.attn_post_norm\.", ".post_self_attn_layernorm."),
    (r"\.ffn_post_norm\.", ".post_mlp_layernorm."),
    (r"\.attention\.qkv_proj\.", ".self_attention.linear_qkv."),
    (r"\.attention\.out_proj\.", ".self_attention.linear_proj."),
    (r"\.attention\.(q|kv|q_down|q_up|kv_down|kv_up)_proj\.", r".self_attention.linear_\1_proj."),
    (r"\.attention\.", ".self_attention."),
    (r"\.shared_experts\.mlp\.", ".shared_experts."),
    (r"\.shared_experts\.gate\.weight$", ".shared_experts.gate_weight"),
    (r"\.(mlp|shared_experts|local_experts\.\d+)\.mapping\.", r".\1.linear_fc1."),
    (r"\.(mlp|shared_experts|local_experts\.\d+)\.projection\.", r".\1.linear_fc2."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)

_FROM_MEGATRON = (
    # Transformer Engine fuses a norm into the product behind it.
    (r"\.self_attention\.linear_qkv\.layer_norm_(weight|bias)$", r".input_layernorm.\1"),
    (r"\.mlp\.linear_fc1\.layer_norm_(weight|bias)$", r".pre_mlp_layernorm.\1"),
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
    # To this project's names.
    (r"^embedding\.", "language_model.embedding."),
    (r"^decoder\.", "language_model.encoder."),
    (r"^output_layer\.", "language_model.output_layer."),
    (r"^mtp\.", "language_model.mtp."),
    (r"\.input_layernorm\.", ".input_norm."),
    (r"\.pre_mlp_layernorm\.", ".post_attention_norm."),
    (r"\.final_layernorm\.", ".final_norm."),
    (r"\.post_self_attn_layernorm\.", ".attn_post_norm."),
    (r"\.post_mlp_layernorm\.", ".ffn_post_norm."),
    (r"\.self_attention\.linear_qkv\.", ".attention.qkv_proj."),
    (r"\.self_attention\.linear_proj\.", ".attention.out_proj."),
    (r"\.self_attention\.linear_(q|kv|q_down|q_up|kv_down|kv_up)_proj\.", r".attention.\1_proj."),
    (r"\.self_attention\.", ".attention."),
    (r"\.shared_experts\.gate_weight$", ".shared_experts.gate.weight"),
    (r"\.shared_experts\.(?=linear)", ".shared_experts.mlp."),
    (r"\.(mlp|local_experts\.\d+)\.linear_fc1\.", r".\1.mapping."),
    (r"\.(mlp|local_experts\.\d+)\.linear_fc2\.", r".\1.projection."),
)

_NORM = re.compile(r"norm\.(weight|bias)$")


def _replaced(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def megatron_name(name: str) -> str:
    """Name of a parameter in Megatron-core.

    Megatron counts experts from 0 on every expert parallel rank.

    >>> megatron_name("language_model.encoder.layers.3.attention.qkv_proj.weight")
    'decoder.layers.3.self_attention.linear_qkv.weight'
    >>> megatron_name("language_model.encoder.layers.0.mlp.experts.local_experts.5.mapping.weight")
    'decoder.layers.0.mlp.experts.local_experts.5.linear_fc1.weight'
    """
    return _replaced(name, _TO_MEGATRON)


def own_name(name: str, exists: Callable[[str], bool]) -> str:
    """Name of a parameter here, from any of Megatron's names.

    Args:
        name: the name, layers and experts counted over the whole model.
        exists: whether the model has a parameter of some name there: a norm with a bias is a layer
            norm, whose parameters are gamma and beta here.
    """
    own = _replaced(name, _FROM_MEGATRON)
    if _NORM.search(name) or _NORM.search(own):
        stem, _, kind = name.rpartition("weight" if name.endswith("weight") else "bias")
        if exists(f"{stem}bias{kind}"):
            return re.sub(r"weight$", "gamma", re.sub(r"bias$", "beta", own))
    return own


def single_expert(name: str) -> str:
    """Megatron's name of an expert's matrix in a block of its own, for one among grouped ones too.

    >>> single_expert("decoder.layers.0.mlp.experts.linear_fc1.weight5")
    'decoder.layers.0.mlp.experts.local_experts.5.linear_fc1.weight'
    """
    return re.sub(
        r"\.experts\.(linear_fc[12])\.weight(\d+)$", r".experts.local_experts.\2.\1.weight", name
    )


@dataclass(frozen=True, slots=True)
class Split:
    """How a tensor is cut for tensor parallel ranks."""

    dim: int = -1
    """-1: every rank holds all of it."""
    stride: int = 1
    """Stacked matrices that are cut one by one."""
    is_expert: bool = False


_COLUMN = re.compile(r"(qkv_proj|mapping|\.q_proj|q_up_proj|kv_up_proj|eh_proj)\.(weight|bias)$")
_ROW = re.compile(r"(out_proj|projection)\.weight$")


def split_of(name: str, is_gated: bool) -> Split:
    """How Megatron splits a parameter.

    Args:
        name: its name here.
        is_gated: the first matrix of an MLP holds [gate; up].
    """
    is_expert = ".experts." in name
    if name in VOCABULARY:
        return Split(0)
    if _COLUMN.search(name):
        return Split(0, 2 if is_gated and ".mapping." in name else 1, is_expert)
    if _ROW.search(name):
        return Split(1, 1, is_expert)
    return Split(-1, 1, is_expert)


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
