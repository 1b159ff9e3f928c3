# SPDX-License-Identifier: Apache-2.0
"""Prompts, as users give them. Legend: b prompts, s tokens of the longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms.backend import memory


@dataclass(frozen=True, slots=True)
class Prompts:
    """Tokens to go on from."""

    ids: NDArray[np.int64]
    """[b, s], padding included."""
    seen: NDArray[np.bool_]
    """[b, s], False for padding."""

    @property
    def rows(self) -> list[NDArray[np.int64]]:
        """Tokens of each prompt without its padding."""
        return [row[seen] for row, seen in zip(self.ids, self.seen, strict=True)]

    @property
    def padding(self) -> NDArray[np.int64]:
        """[b], tokens of padding at the beginning."""
        return self.seen.argmax(axis=1)

    def row(self, number: int) -> Prompts:
        """One of them."""
        return Prompts(self.ids[number : number + 1], self.seen[number : number + 1])

    def at(self, positions: Any) -> Prompts:
        """Itself, if positions [b or 1, s] are those that its tokens have; None: they are.

        Raises:
            ValueError: they are others.
        """
        if positions is None:
            return self
        own = self.seen.cumsum(axis=1) - 1
        found, _ = matrix(positions, 0)
        fits = found.shape[0] in (1, len(own)) and found.shape[1] == own.shape[1]
        if not fits or (self.seen & (found != own)).any():
            raise ValueError(
                "position_ids are not the places of the prompts' tokens, counted without padding; "
                "other places are not served: leave position_ids out"
            )
        return self


def prompts_of(
    input_ids: Any, attention_mask: Any, pad: int | None, ends: Sequence[int], begin: int | None
) -> Prompts:
    """Prompts from tensors, arrays or lists.

    Without a mask, ids of padding are padding, if they do not end texts as well. Lists of
    different lengths are padded on the left.

    Args:
        input_ids: [b, s] or [s]; None: one prompt of the begin token.
        attention_mask: [b, s], 0 for padding.
        pad: id of padding.
        ends: ids that end a text.
        begin: id that begins one.

    Raises:
        ValueError: no integers, a mask of another shape, or a prompt without tokens.
    """
    if input_ids is None:
        if begin is None:
            raise ValueError("generate needs input_ids: there is no bos_token_id to begin with")
        input_ids = [[begin]]
    ids, seen = matrix(input_ids, 0 if pad is None else pad)
    if attention_mask is not None:
        mask, _ = matrix(attention_mask, 0)
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask has shape {list(mask.shape)}, but input_ids {list(ids.shape)}"
            )
        seen = seen & (mask != 0)
    elif pad is not None and pad not in ends and (ids == pad).any():
        seen = seen & (ids != pad)
    empty = np.flatnonzero(~seen.any(axis=1))
    if len(empty):
        raise ValueError(f"prompt {empty[0]} has no tokens; every prompt needs at least one")
    return Prompts(ids, seen)


def matrix(values: Any, filler: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Numbers that users give as tensors, arrays or lists, [b, s], and where a list held one.

    Raises:
        ValueError: they are no integers, or have other axes.
    """
    if isinstance(values, Tensor):
        values = memory.as_numpy(memory.contiguous(values))
    if isinstance(values, list | tuple) and values and isinstance(values[0], list | tuple):
        width = max(len(row) for row in values)
        ids = np.full((len(values), width), filler, np.int64)
        seen = np.zeros(ids.shape, bool)
        for index, row in enumerate(values):
            ids[index, width - len(row) :] = row
            seen[index, width - len(row) :] = True
        return ids, seen
    array = np.asarray(values)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.dtype.kind not in "iub" or not array.size:
        raise ValueError(
            f"input_ids have shape {list(array.shape)} and type {array.dtype}; they must be "
            "integers [batch, sequence], with at least one token"
        )
    return array.astype(np.int64), np.ones(array.shape, bool)
