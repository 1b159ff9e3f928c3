# SPDX-License-Identifier: Apache-2.0
"""Which tokens form sample i: three index arrays, computed from sequence lengths and a seed.

``document_index`` is the order in which sequences are strung together, epoch after epoch;
``sample_index`` cuts the string into pieces of equal length; ``shuffle_index`` is the order in
which the pieces are read. All three equal Megatron's bit by bit.

Source: Megatron-LM core 0.12 ``data/gpt_dataset.py`` and ``helpers.cpp`` (behaviour).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.backend import bars
from mindspeed_ms.backend.host_memory import free_memory
from mindspeed_ms.data.native import native_indices

_ROWS_PER_BLOCK = 1 << 22
_ALWAYS_THERE = 1 << 28
"""Bytes of an index below which no host is asked."""

_SEPARATE_BELOW = 0.80


class GPTIndices(NamedTuple):
    """The three arrays of one dataset."""

    document_index: NDArray[np.int32]
    """Sequence numbers in reading order."""

    sample_index: NDArray
    """[samples + 1, 2]: place in ``document_index`` and token offset where each sample starts."""

    shuffle_index: NDArray
    """Row of ``sample_index`` for each sample number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochPlan:
    """How often the tokens are read to get the samples wanted."""

    num_epochs: int
    """Passes over the tokens, at least 1."""

    num_samples_sans_final_epoch: int
    """Samples that lie within all passes but the last."""

    separate_final_epoch: bool
    """Whether the last pass is shuffled apart, because less than 80 % of it is needed."""


def plan_epochs(
    tokens_per_epoch: int, num_samples: int | None, sequence_length: int, extra_token: int
) -> EpochPlan:
    """Find the smallest number of passes that gives ``num_samples``; one pass for None."""
    wanted = 0 if num_samples is None else num_samples * sequence_length + extra_token
    num_epochs = max(1, -(-wanted // tokens_per_epoch))
    if num_samples is None or num_epochs == 1:
        return EpochPlan(
            num_epochs=num_epochs, num_samples_sans_final_epoch=0, separate_final_epoch=False
        )
    sans_final = ((num_epochs - 1) * tokens_per_epoch - extra_token) // sequence_length
    per_epoch = (tokens_per_epoch - extra_token) // sequence_length
    return EpochPlan(
        num_epochs=num_epochs,
        num_samples_sans_final_epoch=sans_final,
        separate_final_epoch=num_samples - sans_final < int(_SEPARATE_BELOW * per_epoch),
    )


def build_document_index(
    documents: NDArray[np.int32], plan: EpochPlan, rng: np.random.RandomState
) -> NDArray[np.int32]:
    """Repeat the documents once per epoch and shuffle; the last epoch apart if the plan says so."""
    parts = [plan.num_epochs - 1, 1] if plan.separate_final_epoch else [plan.num_epochs]
    shuffled = []
    for epochs in parts:
        part = np.tile(documents, epochs).astype(np.int32, copy=False)
        rng.shuffle(part)
        shuffled.append(part)
    return shuffled[0] if len(shuffled) == 1 else np.concatenate(shuffled)


def build_sample_index(
    sequence_lengths: NDArray[np.int32],
    document_index: NDArray[np.int32],
    sequence_length: int,
    *,
    extra_token: int = 1,
    drop_last_partial: bool = True,
    num_tokens: int | None = None,
) -> NDArray:
    """Cut the documents, in the order of ``document_index``, into samples.

    Row k names the document holding the last token of sample k - 1, and in it the offset at which
    sample k starts. With one extra token that is the last token itself, which two neighbours
    share; without, it may be the place just after the end of the document.

    Args:
        sequence_lengths: tokens of each document.
        document_index: documents in reading order.
        sequence_length: tokens of a sample.
        extra_token: tokens of the next sample that are read with each.
        drop_last_partial: leave out what does not fill a sample at the end.
        num_tokens: tokens of all documents in the order; None counts them.

    Returns:
        [samples + 1, 2], int32, or int64 when a number in it could need that.
    """
    largest = max(len(document_index), int(sequence_lengths.max(initial=0)))
    dtype = np.int32 if largest <= np.iinfo(np.int32).max else np.int64
    native = native_indices()
    if native is not None and drop_last_partial:
        lengths = np.ascontiguousarray(sequence_lengths, np.int32)
        order = np.ascontiguousarray(document_index, np.int32)
        tokens = native.count_tokens(lengths, order) if num_tokens is None else num_tokens
        usable = max(0, tokens - extra_token)
        samples = np.empty((usable // sequence_length + 1, 2), dtype=dtype)
        samples[0] = 0
        native.sample_rows(samples[1:], lengths, order, sequence_length, extra_token)
        return samples
    lengths = sequence_lengths[document_index]
    ends = np.cumsum(lengths, dtype=np.int64)
    num_tokens = int(ends[-1]) if len(ends) else 0
    usable = max(0, num_tokens - extra_token)
    num_full = usable // sequence_length
    num_samples = num_full if drop_last_partial else -(-usable // sequence_length)
    samples = np.zeros((num_samples + 1, 2), dtype=dtype)
    # A document holds as many rows as full samples have their last token in it.
    num_ended = np.maximum(ends - extra_token, 0) // sequence_length
    places = np.arange(len(ends), dtype=dtype)
    samples[1 : num_full + 1, 0] = np.repeat(places, np.diff(num_ended, prepend=0))
    starts = ends - lengths
    for first in range(1, num_full + 1, _ROWS_PER_BLOCK):
        stop = min(first + _ROWS_PER_BLOCK, num_full + 1)
        token = np.arange(first, stop, dtype=np.int64) * sequence_length
        samples[first:stop, 1] = token - starts[samples[first:stop, 0]]
    if num_samples > num_full:
        last = int(np.searchsorted(ends, num_tokens))  # documents behind it are empty
        samples[-1] = last, num_tokens - extra_token - starts[last]
    return samples


def build_shuffle_index(num_first: int, num_total: int, rng: np.random.RandomState) -> NDArray:
    """Shuffle 0 ... num_first - 1, then the rest apart."""
    dtype = np.uint32 if num_total < np.iinfo(np.uint32).max - 1 else np.int64
    index = np.arange(num_total, dtype=dtype)
    rng.shuffle(index[:num_first])
    if num_first < num_total:
        rng.shuffle(index[num_first:])
    return index


def build_gpt_indices(
    sequence_lengths: NDArray[np.int32],
    documents: NDArray[np.int32],
    num_samples: int | None,
    *,
    sequence_length: int,
    random_seed: int,
    extra_token: int = 1,
    drop_last_partial: bool = True,
) -> GPTIndices:
    """Build the three arrays from one random stream: documents first, then samples."""
    tokens_per_epoch = int(sequence_lengths[documents].sum(dtype=np.int64))
    plan = plan_epochs(tokens_per_epoch, num_samples, sequence_length, extra_token)
    _require_memory(
        plan.num_epochs * len(documents),
        plan.num_epochs * tokens_per_epoch // sequence_length,
        plan.num_epochs,
    )
    rng = np.random.RandomState(random_seed)
    with bars.bar("building sample indices", 3, "index") as progress:
        document_index = build_document_index(documents, plan, rng)
        progress.update()
        sample_index = build_sample_index(
            sequence_lengths,
            document_index,
            sequence_length,
            extra_token=extra_token,
            drop_last_partial=drop_last_partial,
            num_tokens=tokens_per_epoch * plan.num_epochs,
        )
        progress.update()
        total = len(sample_index) - 1
        first = plan.num_samples_sans_final_epoch if plan.separate_final_epoch else total
        shuffle_index = build_shuffle_index(first, total, rng)
        progress.update()
    return GPTIndices(document_index, sample_index, shuffle_index)


def _require_memory(visits: int, samples: int, num_epochs: int) -> None:
    """Ask for the room of the arrays before it is taken.

    Args:
        visits: rows of the document index.
        samples: rows of the other two.
        num_epochs: passes over the data, for the error.

    Raises:
        ValueError: the host has not as much left.
    """
    needed = np.dtype(np.int32).itemsize * (visits + 3 * samples)
    if needed < _ALWAYS_THERE:
        return
    free = free_memory()
    if needed > free.num_bytes:
        raise ValueError(
            f"the order of {samples} samples ({num_epochs} passes over the data) takes "
            f"{needed / 1e9:.1f} GB of memory, but {free.limit} has {free.num_bytes / 1e9:.1f} GB "
            "left; shorten training, or take more data"
        )


def are_indices_of(
    indices: GPTIndices,
    sequence_lengths: NDArray[np.int32],
    documents: NDArray[np.int32],
    sequence_length: int,
) -> bool:
    """Whether arrays of unknown origin cut these documents into samples of this length.

    Every document must be visited equally often, every row must lie ``sequence_length`` tokens
    behind the one before, and every sample must be read once. Which order they are in is not
    checked.
    """
    visits, rows, order = indices
    are_whole = all(array.dtype.kind in "iu" for array in indices)
    if not are_whole or (visits.ndim, rows.ndim, order.ndim) != (1, 2, 1) or rows.shape[1] != 2:
        return False
    if len(order) != len(rows) - 1 or not len(visits):
        return False
    counts = np.zeros(len(sequence_lengths), np.int64)
    if int(visits.min()) < 0 or int(visits.max()) >= len(counts):
        return False
    np.add.at(counts, visits, 1)
    counts[documents] -= len(visits) // max(1, len(documents))
    if counts.any() or not _rows_follow(rows, sequence_lengths, visits, sequence_length):
        return False
    seen = np.zeros(len(order), np.bool_)
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(order):
        return False
    seen[order] = True
    return bool(seen.all())


def _rows_follow(
    rows: NDArray, lengths: NDArray[np.int32], visits: NDArray[np.int32], sequence_length: int
) -> bool:
    """Whether row k lies k x ``sequence_length`` tokens behind the first, the last row nearer."""
    places, offsets = rows[:, 0], rows[:, 1]
    if (places[1:] < places[:-1]).any() or places[0] != 0 or offsets[0] != 0:
        return False
    if int(places[-1]) >= len(visits) or int(offsets.min()) < 0:
        return False
    before = 0  # tokens in front of the block of visits
    for first in range(0, len(visits), _ROWS_PER_BLOCK):
        size = lengths[visits[first : first + _ROWS_PER_BLOCK]].astype(np.int64)
        starts = before + np.cumsum(size) - size
        low, high = np.searchsorted(places, [first, first + len(size)])
        local = places[low:high].astype(np.int64) - first
        at = starts[local] + offsets[low:high]
        wanted = np.arange(low, high, dtype=np.int64) * sequence_length
        is_last = high == len(rows)
        full = slice(None, -1 if is_last else None)
        if (offsets[low:high] > size[local]).any() or (at[full] != wanted[full]).any():
            return False
        if is_last and len(at) and not wanted[-1] - sequence_length < at[-1] <= wanted[-1]:
            return False
        before += int(size.sum())
    return True
