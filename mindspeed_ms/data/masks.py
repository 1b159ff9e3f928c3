# SPDX-License-Identifier: Apache-2.0
"""Loss mask, position ids and attention mask of one sample."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class MasksAndPositionIds(NamedTuple):
    """What goes with the tokens of one sample."""

    attention_mask: NDArray[np.bool_] | None
    """[1, s, s], True = masked."""

    loss_mask: NDArray[np.float32]
    """[s], 1 where the label counts."""

    position_ids: NDArray[np.int64]
    """[s]."""

    document_ids: NDArray[np.int32] | None = None
    """[s], the number of each token's document; None: attention crosses documents."""


def get_ltor_masks_and_position_ids(
    tokens: NDArray[np.int64],
    eod_token: int,
    *,
    reset_position_ids: bool = False,
    reset_attention_mask: bool = False,
    eod_mask_loss: bool = False,
    create_attention_mask: bool = False,
) -> MasksAndPositionIds:
    """Masks and positions of a causal model over tokens [s].

    An end-of-document token belongs to the document it ends; the next token starts a new one.

    Source: Megatron-LM core 0.12 ``_get_ltor_masks_and_position_ids`` (behaviour).
    """
    length = len(tokens)
    position_ids = np.arange(length, dtype=np.int64)
    is_eod = tokens == eod_token
    loss_mask = np.ones(length, dtype=np.float32)
    if eod_mask_loss:
        loss_mask[is_eod] = 0.0
    document_ids = None
    if reset_attention_mask:
        document_ids = (np.cumsum(is_eod) - is_eod).astype(np.int32)
    attention_mask = None
    if create_attention_mask:
        attention_mask = position_ids[None, :] > position_ids[:, None]
        if document_ids is not None:
            attention_mask |= document_ids[None, :] != document_ids[:, None]
        attention_mask = attention_mask[None]
    if reset_position_ids:
        starts = np.where(np.concatenate(([True], is_eod[:-1])), position_ids, 0)
        position_ids = position_ids - np.maximum.accumulate(starts)
    return MasksAndPositionIds(attention_mask, loss_mask, position_ids, document_ids)
