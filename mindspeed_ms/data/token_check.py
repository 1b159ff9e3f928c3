"""Look for token ids the model has no embedding for, before training starts."""

from __future__ import annotations

import logging

import numpy as np

from mindspeed_ms.data.indexed_dataset import IndexedDataset

logger = logging.getLogger(__name__)

WHOLE_FILE_BELOW = 1 << 30
"""Token files smaller than this many bytes are read completely."""

SAMPLE_BYTES = 256 << 20
"""Bytes read of larger files."""

_BLOCK = 1 << 22


def check_token_ids(dataset: IndexedDataset, vocab_size: int) -> None:
    """Check that ids lie in 0 ... vocab_size - 1; of files above 1 GiB the first 256 MiB.

    Raises:
        ValueError: tokens that are no integers, or an id outside; names the document and the id.
    """
    if dataset.dtype.kind not in "iu":
        raise ValueError(
            f"{dataset.path_prefix} stores {dataset.dtype.name}, token ids are integers; "
            "preprocess it again"
        )
    limits = np.iinfo(dataset.dtype)
    if limits.min >= 0 and limits.max < vocab_size:
        return
    num_tokens = int(dataset.sequence_lengths.sum(dtype=np.int64))
    limit = None
    if num_tokens * dataset.dtype.itemsize >= WHOLE_FILE_BELOW:
        limit = SAMPLE_BYTES // dataset.dtype.itemsize
        logger.info("%s: checking token ids of the first %d tokens", dataset.path_prefix, limit)
    for first, tokens in dataset.token_blocks(_BLOCK, limit):
        if tokens.max() < vocab_size and tokens.min() >= 0:
            continue
        at = int(np.argmax((tokens >= vocab_size) | (tokens < 0)))
        sequence = int(np.searchsorted(np.cumsum(dataset.sequence_lengths), first + at, "right"))
        document = int(np.searchsorted(dataset.document_indices, sequence, side="right")) - 1
        raise ValueError(
            f"document {document} of {dataset.path_prefix} holds token id {tokens[at]}, the "
            f"vocabulary has {vocab_size} ids (0 to {vocab_size - 1}); use the tokenizer the data "
            "was made with, or preprocess the data again"
        )
