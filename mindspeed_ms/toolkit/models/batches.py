# SPDX-License-Identifier: Apache-2.0
"""What users hand to a model, as the engine takes it. Legend: b batch, s sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms.backend import memory
from mindspeed_ms.config import AllConfig

IGNORED = -100
"""Label of a token without loss."""


def as_array(values: Any, name: str) -> NDArray:
    """Integers [b, s] from a tensor, an array or lists.

    Raises:
        ValueError: not two-dimensional, empty, or no integers.
    """
    if isinstance(values, Tensor):
        values = memory.as_numpy(memory.contiguous(values))
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} is no array of [batch, sequence]: {error}") from None
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iub":
        raise ValueError(
            f"{name} has shape {list(array.shape)} and type {array.dtype}, but must be integers "
            "[batch, sequence]"
        )
    return array


@dataclass(frozen=True, slots=True)
class Targets:
    """Labels that stand beside the token that predicts them."""

    ids: NDArray

    def tensors(self, extra: int = 0) -> tuple[Tensor, Tensor]:
        """Labels and loss mask [b, s + extra]; ignored labels become 0 with mask 0."""
        ids = np.pad(self.ids, ((0, 0), (0, extra)), constant_values=IGNORED)
        counts = ids != IGNORED
        labels = np.where(counts, ids, 0).astype(np.int32)
        return memory.from_numpy(labels), memory.from_numpy(counts.astype(np.float32))


def shifted(labels: Any, shape: tuple[int, ...]) -> Targets:
    """Labels at the place of their own token, moved to the token before.

    Raises:
        ValueError: of another shape than the ids.
    """
    array = as_array(labels, "labels")
    if array.shape != shape:
        raise ValueError(
            f"labels have shape {list(array.shape)}, but input_ids {list(shape)}; give labels the "
            "shape of input_ids, they are shifted here"
        )
    moved = np.full_like(array, IGNORED)
    moved[:, :-1] = array[:, 1:]
    return Targets(moved)


@dataclass(frozen=True, slots=True)
class Batch:
    """What the first stage reads."""

    tokens: Tensor
    """[b, s], filled up to a multiple of the tensor ranks with sequence parallelism."""
    position_ids: Tensor
    mask: Tensor | None
    """bool [b, 1, s, s], True = masked; None = causal."""
    length: int
    """s before filling up."""


def prepare(ids: NDArray, attention_mask: Any, position_ids: Any, config: AllConfig) -> Batch:
    """Tokens, positions and mask of a call.

    Raises:
        ValueError: ids without a row in the vocabulary, shapes that differ, more tokens than
            learned positions, or positions that rotations cannot follow.
    """
    model, parallel = config.model_config, config.parallel_config
    rows = config.dataset_config.vocab_size or model.vocab_size
    if ids.min() < 0 or ids.max() >= rows:
        raise ValueError(
            f"input_ids hold {ids.min()} to {ids.max()}, but the vocabulary has {rows} rows; use "
            "the tokenizer of this model"
        )
    batch, length = ids.shape
    most = model.max_position_embeddings or model.seq_length
    if model.has_learned_positions and length > most:
        raise ValueError(
            f"input_ids have {length} tokens, but the model learned {most} positions; shorten them"
        )
    seen = None if attention_mask is None else as_array(attention_mask, "attention_mask") != 0
    if seen is not None and seen.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {list(seen.shape)}, but input_ids {list(ids.shape)}"
        )
    positions = np.broadcast_to(np.arange(length), ids.shape)
    if position_ids is not None:
        given = np.broadcast_to(as_array(position_ids, "position_ids"), ids.shape)
        if model.has_learned_positions:
            positions = given
        else:
            _require_even_steps(given, seen)
    ranks = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    extra = -length % ranks
    pad = ((0, 0), (0, extra))
    tokens = np.pad(ids, pad).astype(np.int32)
    positions = np.pad(positions, pad, mode="edge").astype(np.int32)
    mask = None if seen is None else dense_mask(np.pad(seen, pad))
    return Batch(
        memory.from_numpy(tokens),
        memory.from_numpy(positions),
        None if mask is None else memory.from_numpy(mask),
        length,
    )


def _require_even_steps(positions: NDArray, seen: NDArray | None) -> None:
    """Rotations depend on differences: positions that count up by one need nothing.

    Raises:
        ValueError: others.
    """
    offsets = positions - np.arange(positions.shape[1])
    for row, offset in enumerate(offsets):
        used = offset if seen is None else offset[seen[row]]
        if used.size and (used != used[0]).any():
            raise ValueError(
                "position_ids of a model with rotary positions must count up by one over the "
                "tokens that are seen; give documents of their own as rows of the batch"
            )


def dense_mask(seen: NDArray) -> NDArray | None:
    """Masked pairs [b, 1, s, s] of query and key; None if the causal mask is enough.

    Tokens behind a row's last seen one are never keys of a seen one, so padding on the right needs
    no mask. A query that would see nothing sees itself. Layers add their windows.

    Args:
        seen: bool [b, s].
    """
    hidden_before = ~seen & (np.cumsum(seen[:, ::-1], axis=1)[:, ::-1] > 0)
    if not hidden_before.any():
        return None
    length = seen.shape[1]
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    masked = (distance < 0)[None] | ~seen[:, None, :]
    diagonal = np.arange(length)
    masked[:, diagonal, diagonal] = False
    return np.ascontiguousarray(masked[:, None])
