# SPDX-License-Identifier: Apache-2.0
"""Samples of tokens and of the ids they are to predict, some of which are not learned.

Legend: s sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = -100
"""Label of tokens that are not learned."""

Sample = dict[str, NDArray]


@dataclass(frozen=True, slots=True)
class Shape:
    """What samples of a run look like."""

    seq_length: int
    pad: int = 0
    """Id where there is no token."""
    eod: int | None = None
    """Id that ends a document; None: unknown."""
    documents: bool = False
    """Tokens see their own document only."""


def sample_of(
    tokens: Sequence[int] | NDArray, labels: Sequence[int] | NDArray, shape: Shape
) -> Sample:
    """A sample of tokens and of the ids they are to predict.

    Args:
        tokens: at most s.
        labels: of the same length; ``IGNORE_INDEX`` where nothing is learned.
        shape: of the run's samples.
    """
    length, given = shape.seq_length, len(tokens)
    row = np.full(length, shape.pad, np.int64)
    row[:given] = tokens
    learned = np.zeros(length, np.float32)
    targets = np.zeros(length, np.int64)
    labels = np.asarray(labels, np.int64)
    is_learned = labels != IGNORE_INDEX
    learned[:given] = is_learned
    targets[:given] = np.where(is_learned, labels, 0)  # read by the loss, though without weight
    sample: Sample = {
        "tokens": row,
        "labels": targets,
        "loss_mask": learned,
        "position_ids": np.arange(length, dtype=np.int64),
    }
    if shape.documents:
        sample["document_ids"] = np.zeros(length, np.int32)
    return sample


def dense_mask(length: int, documents: NDArray | None = None) -> NDArray[np.bool_]:
    """What tokens do not see, [1, s, s], True = masked: later ones, and other documents'.

    Args:
        length: s.
        documents: number of each token's document, [s]; None: all are of one.
    """
    mask = np.triu(np.ones((length, length), np.bool_), 1)
    if documents is not None:
        mask |= documents != documents[:, None]
    return mask[None]


def with_documents(sample: Sample, lengths: Sequence[int] | NDArray) -> Sample:
    """A sample whose tokens see their own document only, with positions from 0 in each.

    Args:
        sample: of s tokens.
        lengths: tokens of its documents, s in all.
    """
    positions = np.concatenate([np.arange(length) for length in lengths])
    return sample | {
        "position_ids": positions.astype(np.int64),
        "document_ids": np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
    }
