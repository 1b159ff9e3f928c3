# SPDX-License-Identifier: Apache-2.0
"""Numbered samples of equal length, for the run's loaders. Legend: s sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.labelled import IGNORE_INDEX, Sample, Shape, sample_of
from mindspeed_ms.data.loader import SampleDataset


def ids_of(given: object, name: str) -> NDArray:
    """Whole numbers of a row.

    Args:
        given: a list, an array, a tensor.
        name: what it is, for messages.

    Raises:
        ValueError: it holds anything else, or rows within a row.
    """
    array = given.asnumpy() if hasattr(given, "asnumpy") else given
    try:
        array = np.asarray(array)
    except ValueError:  # rows of unequal lengths
        array = np.asarray(None)
    if not array.size and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or not (array.dtype == bool or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name} is {given!r:.60}; give a list of whole numbers")
    return array.astype(np.int64)


def require_fit(length: int, shape: Shape) -> None:
    """Refuse a row that is too long.

    Raises:
        ValueError: it has more than s + 1 tokens.
    """
    if length > shape.seq_length + 1:
        raise ValueError(
            f"a row has {length} tokens, but seq_length is {shape.seq_length}: rows hold at most "
            f"{shape.seq_length + 1}; set seq_length of the model, or max_length, to {length - 1}, "
            "or cut the rows"
        )


def sample_of_row(row: NDArray, shape: Shape) -> Sample:
    """A sample of s + 1 tokens, each of which predicts the next; or of fewer, filled up.

    Raises:
        ValueError: there are more.
    """
    require_fit(len(row), shape)
    return sample_of(row[:-1], row[1:], shape)


def sample_of_labels(ids: Sequence[int], labels: Sequence[int], shape: Shape) -> Sample:
    """A sample with labels as ``transformers`` has them: at the place of their own token.

    Raises:
        ValueError: lengths that differ, or exceed s + 1.
    """
    if len(ids) != len(labels):
        raise ValueError(
            f"a row has {len(ids)} input_ids and {len(labels)} labels; give as many of each"
        )
    require_fit(len(ids), shape)
    return sample_of(ids[:-1], labels[1:], shape)


class Rows:
    """Rows of s + 1 tokens from arrays, one after another.

    Args:
        arrays: each [rows, s + 1].
        shape: of the samples.
        pad: label that is not learned; None: all are.
    """

    def __init__(self, arrays: Sequence[NDArray], shape: Shape, pad: int | None = None) -> None:
        self._arrays = [array for array in arrays if len(array)]
        self._starts = np.cumsum([0, *(len(array) for array in self._arrays)])
        self._shape, self._pad = shape, pad
        for array in self._arrays:
            if array.ndim != 2 or array.shape[1] != shape.seq_length + 1:
                raise ValueError(
                    f"rows have the shape {array.shape[1:]}, expected is "
                    f"({shape.seq_length + 1},): seq_length {shape.seq_length} plus one; set "
                    "seq_length of the model, or max_length, to fit the data"
                )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, idx: int) -> Sample:
        number = int(np.searchsorted(self._starts, idx, side="right")) - 1
        row = np.asarray(self._arrays[number][idx - self._starts[number]], np.int64)
        labels = row[1:].copy()
        if self._pad is not None:
            labels[labels == self._pad] = IGNORE_INDEX
        return sample_of(row[:-1], labels, self._shape)


class Made:
    """Samples that are there already."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, idx: int) -> Sample:
        return self._samples[idx]


class FilledUp:
    """A dataset whose length is a multiple: the samples added at its end are not learned.

    So an evaluation reads every sample once, and counts nothing twice.

    Args:
        dataset: of samples with a ``loss_mask``.
        multiple: of which the length is one.
    """

    def __init__(self, dataset: SampleDataset, multiple: int) -> None:
        self._dataset, self._count = dataset, len(dataset)
        self._length = -(-self._count // multiple) * multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, idx: int) -> Mapping[str, Any]:
        if idx < self._count:
            return self._dataset[idx]
        sample = self._dataset[self._count - 1]
        return {**sample, "loss_mask": np.zeros_like(sample["loss_mask"])}
