# SPDX-License-Identifier: Apache-2.0
"""Kinds of models, layers and masks, with Megatron's numbering."""

from __future__ import annotations

import enum


class ModelType(enum.Enum):
    """Overall architecture."""

    encoder_or_decoder = 1
    encoder_and_decoder = 2


class LayerType(enum.Enum):
    """Role of a transformer layer."""

    encoder = 1
    decoder = 2


class AttnType(enum.Enum):
    """Where keys and values come from."""

    self_attn = 1
    cross_attn = 2


class AttnMaskType(enum.Enum):
    """Which positions a query may see."""

    padding = 1
    causal = 2
    no_mask = 3
    padding_causal = 4


def as_mask_type(value: enum.Enum | None) -> AttnMaskType:
    """Mask type of any enum with Megatron's values: user code often defines its own.

    None is padding: the mask of the call decides.

    Raises:
        ValueError: a value that is none of 1 to 4.
    """
    if value is None:
        return AttnMaskType.padding
    try:
        return AttnMaskType(value.value)
    except ValueError:
        names = ", ".join(f"{member.name} = {member.value}" for member in AttnMaskType)
        raise ValueError(
            f"attention mask type is {value!r} with value {value.value}; it must be one of {names}"
        ) from None
