# SPDX-License-Identifier: Apache-2.0
"""Layers whose blocks differ in size, or are replaced or left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, TypeAlias

from mindspeed_ms.config.sparse_attention_options import SparseAttentionOptions

Kind: TypeAlias = Literal["usual", "linear", "none"]
"""What a block is: as in other models, one linear layer, or nothing."""

_WIDTHS = 256
"""``ffn_mult`` gives multiples of it."""


@dataclass(frozen=True, slots=True)
class BlockShape:
    """Attention and feed-forward block of a layer, as far as they are not as in the others."""

    attention: Kind = "usual"
    num_query_groups: int | None = None
    mlp: Kind = "usual"
    ffn_hidden_size: int | None = None

    def __str__(self) -> str:
        parts = (
            ("attention", self.attention, self.num_query_groups),
            ("mlp", self.mlp, self.ffn_hidden_size),
        )
        return ", ".join(f"{kind} {name} {size or ''}".strip() for name, kind, size in parts)


USUAL = BlockShape()


@dataclass(frozen=True, kw_only=True)
class BlockOptions(SparseAttentionOptions):
    """Those fields of ``model_config``."""

    NAME: ClassVar[str] = "model_config"

    heterogeneous_layers_config_encoded_json: str | None = None
    """Text of a JSON file with block_configs: for each layer what its attention and its
    feed-forward block are, as in config.json of Llama Nemotron. None: all layers are alike."""

    def block_shapes(self, heads: int, hidden: int) -> tuple[BlockShape, ...]:
        """What the blocks of all layers are; empty if they are alike.

        Args:
            heads: of attention.
            hidden: channels of the residual stream.

        Raises:
            ValueError: a text that does not say them.
        """
        text = self.heterogeneous_layers_config_encoded_json
        return () if text is None else shapes_of(text, heads, hidden)

    def _check_blocks(self, layers: int, heads: int, hidden: int, ranks: int) -> None:
        """Raise ValueError when blocks do not fit the model.

        Args:
            layers: number of layers.
            heads: of attention.
            hidden: channels of the residual stream.
            ranks: tensor parallel ranks.
        """
        shapes = self.block_shapes(heads, hidden)
        if shapes and len(shapes) != layers:
            raise ValueError(
                f"block_configs has {len(shapes)} entries for {layers} layers; write one for each"
            )
        for index, shape in enumerate(shapes):
            groups = shape.num_query_groups
            if groups is not None and (heads % groups or (groups % ranks and ranks % groups)):
                raise ValueError(
                    f"block {index} of block_configs has {groups} groups of {heads} heads on "
                    f"{ranks} tensor parallel ranks; groups must divide the heads, and be a "
                    "multiple or divisor of the ranks"
                )


@cache
def shapes_of(text: str, heads: int, hidden: int) -> tuple[BlockShape, ...]:
    """Shapes of the layers that a JSON text with ``block_configs`` describes.

    Args:
        text: the file's.
        heads: of attention.
        hidden: channels of the residual stream.

    Raises:
        ValueError: it does not describe them.

    Source: Megatron-LM ``HeterogeneousTransformerConfig`` (keys and rounding of widths).
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the layers' configuration is no JSON ({error}); it is an object with block_configs"
        ) from None
    blocks = found.get("block_configs") if isinstance(found, dict) else None
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise ValueError(
            "the layers' configuration has no list block_configs with one object for each layer"
        )
    return tuple(_shape_of(block, number, heads, hidden) for number, block in enumerate(blocks))


def _shape_of(block: Mapping[str, Any], number: int, heads: int, hidden: int) -> BlockShape:
    attention, mlp = block.get("attention"), block.get("ffn")
    mlp = block.get("mlp") if mlp is None else mlp
    if not isinstance(attention, dict) or not isinstance(mlp, dict):
        raise ValueError(f"block {number} of block_configs needs attention, and ffn or mlp")
    groups = attention.get("num_query_groups")
    each = attention.get("n_heads_in_group")
    if "num_query_groups" not in attention and each is not None:
        if not _is_count(each) or heads % each:
            raise ValueError(
                f"block {number} of block_configs has n_heads_in_group {each}; it must divide "
                f"num_attention_heads ({heads})"
            )
        groups = heads // each
    width, factor = mlp.get("ffn_hidden_size"), mlp.get("ffn_mult")
    if "ffn_hidden_size" not in mlp and factor is not None:
        if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
            raise ValueError(
                f"block {number} of block_configs has ffn_mult {factor!r}; it is a number above 0"
            )
        width = -(-int(2 * factor * hidden / 3) // _WIDTHS) * _WIDTHS
    kinds = _kind(attention, groups, number, "attention"), _kind(mlp, width, number, "mlp")
    return BlockShape(kinds[0], groups, kinds[1], width)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _kind(block: Mapping[str, Any], size: object, number: int, name: str) -> Kind:
    is_nothing, is_linear = block.get("no_op", False), block.get("replace_with_linear", False)
    if size is not None and not _is_count(size):
        raise ValueError(
            f"block {number} of block_configs has the size {size!r} of {name}; it is a whole "
            "number above 0"
        )
    if size is not None and (is_nothing or is_linear):
        raise ValueError(
            f"block {number} of block_configs has no usual {name}, but a size of it ({size}); "
            "leave out the size, or no_op and replace_with_linear"
        )
    return "none" if is_nothing else "linear" if is_linear else "usual"
