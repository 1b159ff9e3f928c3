# SPDX-License-Identifier: Apache-2.0
"""Token ids the model has no embedding for: looked for at the start, and in every sample.

At the start a file is read as a whole, a large one in places. What is left, and what somebody
changes while training runs, shows when the sample that holds it is read.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.indexed_dataset import IndexedDataset

logger = logging.getLogger(__name__)

WHOLE_FILE_BELOW = 1 << 30
"""Token files smaller than this many bytes are read completely."""

SAMPLE_BYTES = 256 << 20
"""Bytes read of larger files, in blocks spread over all of it."""

_BLOCK = 1 << 22


def can_exceed(dtype: np.dtype, vocab_size: int) -> bool:
    """Whether whole numbers of a type can lie outside of 0 ... vocab_size - 1."""
    limits = np.iinfo(dtype)
    return limits.min < 0 or limits.max >= vocab_size


def first_outside(ids: NDArray, vocab_size: int) -> int | None:
    """Place of the first id that is not in 0 ... vocab_size - 1; None: all are."""
    if not ids.size or (ids.max() < vocab_size and ids.min() >= 0):
        return None
    return int(np.argmax((ids >= vocab_size) | (ids < 0)))


def check_token_ids(dataset: IndexedDataset, vocab_size: int) -> None:
    """Check that ids lie in 0 ... vocab_size - 1; of files above 1 GiB 256 MiB, spread over them.

    Raises:
        ValueError: tokens that are no integers, or an id outside; names the document and the id.
    """
    if dataset.dtype.kind not in "iu":
        raise ValueError(
            f"{dataset.path_prefix} stores {dataset.dtype.name}, token ids are integers; "
            "preprocess it again"
        )
    if not can_exceed(dataset.dtype, vocab_size):
        return
    num_tokens = int(dataset.sequence_lengths.sum(dtype=np.int64))
    count = -(-num_tokens // _BLOCK)
    blocks = range(count)
    if num_tokens * dataset.dtype.itemsize >= WHOLE_FILE_BELOW:
        most = SAMPLE_BYTES // dataset.dtype.itemsize // _BLOCK
        blocks = np.unique(np.linspace(0, count - 1, most, dtype=np.int64)).tolist()
        logger.info(
            "%s: checking the token ids of %d of %d blocks", dataset.path_prefix, len(blocks), count
        )
    for block in blocks:
        first = block * _BLOCK
        tokens = dataset.tokens(first, min(_BLOCK, num_tokens - first))
        at = first_outside(tokens, vocab_size)
        if at is not None:
            raise wrong_id(dataset, dataset.sequence_of(first + at), int(tokens[at]), vocab_size)


def wrong_id(dataset: IndexedDataset, sequence: int, token: int, vocab_size: int) -> ValueError:
    """An error that names the document and the id."""
    document = int(np.searchsorted(dataset.document_indices, sequence, side="right")) - 1
    return ValueError(
        f"document {document} of {dataset.path_prefix} holds token id {token}, the vocabulary has "
        f"{vocab_size} ids (0 to {vocab_size - 1}); use the tokenizer the data was made with, or "
        "preprocess the data again"
    )
