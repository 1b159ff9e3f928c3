# SPDX-License-Identifier: Apache-2.0
"""In which order a blend reads its corpora.

The rule is sequential: sample k comes from the corpus whose error ``weight * max(k, 1) - count`` is
largest, the first one among equals, and its count goes up by one. The compiled helper walks over
the samples. Without it they are cut into stretches ("lanes") that are walked side by side with
vector operations. The counts at the start of a lane are guessed; the rule forgets a wrong guess
within a few steps, so nearly all lanes are right at once. A lane is accepted when its start equals
the end of the lane before it, an exact comparison of integers, and walked again otherwise. The
result is that of the sequential rule, bit by bit.

Errors are followed in float32. Where two corpora come closer to each other than that can tell
apart, the step is decided by Megatron's own expression in float64.

Source: Megatron-LM core 0.12 ``core/datasets/helpers.cpp`` (behaviour).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.native import native_indices

_SEQUENTIAL_BELOW = 1 << 13
"""Samples for which the plain loop is faster."""

_RESYNC_STEPS = 32
"""Steps after which float32 errors are computed anew from the counts."""

_UNDECIDED = np.float32(1e-5)
"""Errors closer than this are compared in float64; 32 float32 additions are off by less."""

_ELEMENTS = 1 << 17
"""Corpora times lanes, such that the working arrays stay in the processor's cache."""

_MAX_LANES = 1 << 13
_WARM_UP_STEPS = 64
_MAX_ROUNDS = 64


class BlendingIndices(NamedTuple):
    """The order of a blend."""

    dataset_index: NDArray[np.int16]
    """Corpus of each sample."""

    dataset_sample_index: NDArray[np.int64]
    """Number of the sample within its corpus."""


def build_blending_indices(weights: Sequence[float], size: int) -> BlendingIndices:
    """Choose for each sample the corpus that lags most behind its share; ties go to the first.

    Args:
        weights: shares that sum to 1.
        size: samples to choose.

    >>> build_blending_indices([0.3, 0.7], 10).dataset_index.tolist()
    [1, 0, 1, 1, 0, 1, 1, 0, 1, 1]
    """
    shares = np.array(weights, dtype=np.float64)
    native = native_indices()
    if native is not None:
        return BlendingIndices(*native.blend(shares, None, size))
    if size < _SEQUENTIAL_BELOW:
        return _walk(shares, [size] * len(shares), size)
    return _walk_in_lanes(shares, size)


def build_exhaustive_blending_indices(sizes: Sequence[int]) -> BlendingIndices:
    """Choose so that corpus i gives exactly ``sizes[i]`` samples, spread evenly."""
    total = sum(sizes)
    shares = np.array([size / total for size in sizes])
    native = native_indices()
    if native is not None:
        return BlendingIndices(*native.blend(shares, np.array(sizes, dtype=np.int64), total))
    if total >= _SEQUENTIAL_BELOW:
        indices = _walk_in_lanes(shares, total)
        # The rule without limits keeps them, unless rounding errors decide about a corpus with
        # very few samples; only then do the limits have a say.
        if np.bincount(indices.dataset_index, minlength=len(sizes)).tolist() == list(sizes):
            return indices
    return _walk(shares, list(sizes), total)


def _walk(shares: NDArray[np.float64], limits: list[int], size: int) -> BlendingIndices:
    """The rule, one sample after the other."""
    weights = shares.tolist()
    indices = BlendingIndices(np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int64))
    counts = [0] * len(weights)
    active = [number for number, limit in enumerate(limits) if limit > 0]
    for step in range(size):
        scale = float(max(step, 1))
        chosen = active[0]
        largest = weights[chosen] * scale - counts[chosen]
        for number in active[1:]:
            error = weights[number] * scale - counts[number]
            if error > largest:
                chosen, largest = number, error
        indices.dataset_index[step] = chosen
        indices.dataset_sample_index[step] = counts[chosen]
        counts[chosen] += 1
        if counts[chosen] == limits[chosen]:
            active.remove(chosen)
    return indices


def _walk_in_lanes(shares: NDArray[np.float64], size: int) -> BlendingIndices:
    """The rule without limits, all lanes at once."""
    indices = BlendingIndices(np.empty(size, dtype=np.int16), np.zeros(size, dtype=np.int64))
    heaviest = int(np.argmax(shares))
    indices.dataset_index[0] = heaviest  # sample 0 has scale 1, like sample 1
    num_lanes = min(_ELEMENTS // len(shares), _MAX_LANES, size // (8 * _WARM_UP_STEPS))
    num_lanes = max(1, num_lanes)
    steps = (size - 1) // num_lanes
    origins = 1 + steps * np.arange(num_lanes, dtype=np.int64)
    warm = np.maximum(origins - _WARM_UP_STEPS, 1)
    starts = _Lanes(shares, _guess(shares, warm), warm).run(_WARM_UP_STEPS)
    starts[:, 0] = 0  # this lane begins at sample 1, and its warm-up with it
    starts[heaviest, 0] = 1
    done = 1 + num_lanes * steps
    tables = tuple(array[1:done].reshape(num_lanes, steps) for array in indices)
    ends = _Lanes(shares, starts, origins).run(steps, tables)
    for _ in range(_MAX_ROUNDS):
        wrong = np.flatnonzero((starts[:, 1:] != ends[:, :-1]).any(axis=0)) + 1
        if not len(wrong):
            break
        starts[:, wrong] = ends[:, wrong - 1]
        walked = tuple(np.empty((len(wrong), steps), table.dtype) for table in tables)
        ends[:, wrong] = _Lanes(shares, starts[:, wrong], origins[wrong]).run(steps, walked)
        for table, rows in zip(tables, walked, strict=True):
            table[wrong] = rows
    else:
        return _walk(shares, [size] * len(shares), size)
    tail = tuple(array[done:].reshape(1, size - done) for array in indices)
    _Lanes(shares, ends[:, -1:], np.array([done])).run(size - done, tail)
    return indices


def _guess(shares: NDArray[np.float64], origins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts [corpora, lanes] that are near those before each sample in ``origins``."""
    targets = shares[:, None] * origins
    counts = np.floor(targets).astype(np.int64)
    missing = origins - counts.sum(axis=0)
    order = np.argsort(counts - targets, axis=0, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(len(shares))[:, None], axis=0)
    return counts + (rank < missing)


class _Lanes:
    """Lanes that walk side by side.

    Args:
        shares: [corpora].
        counts: samples taken from each corpus before the lane, [corpora, lanes].
        origins: first sample of each lane, 1 or later, [lanes].
    """

    def __init__(
        self, shares: NDArray[np.float64], counts: NDArray[np.int64], origins: NDArray[np.int64]
    ) -> None:
        self._shares = shares
        self._samples = origins.astype(np.float64)
        self._counts = counts.astype(np.float64)
        self._errors = np.empty(counts.shape, dtype=np.float32)
        self._is_largest = np.empty(counts.shape, dtype=bool)
        small = np.uint8 if len(shares) <= 256 else np.uint16
        self._numbers = np.arange(len(shares), dtype=small)[:, None]
        self._numbered = np.empty(counts.shape, dtype=small)

    def run(self, steps: int, out: tuple[NDArray, ...] | None = None) -> NDArray[np.int64]:
        """Walk ``steps`` samples; return the counts behind them.

        ``out`` receives the corpora and the numbers within them, [lanes, steps] each.
        """
        errors, increments = self._errors, self._shares.astype(np.float32)[:, None]
        num_lanes = len(self._samples)
        chosen = np.empty((_RESYNC_STEPS, num_lanes), dtype=np.int16)
        places = np.empty((_RESYNC_STEPS, num_lanes), dtype=np.int64)
        largest = np.empty(num_lanes, dtype=np.float32)
        for first in range(0, steps, _RESYNC_STEPS):
            errors[:] = self._shares[:, None] * self._samples - self._counts
            block = min(_RESYNC_STEPS, steps - first)
            for step in range(block):
                np.max(errors, axis=0, out=largest)
                self._choose(largest)
                np.max(self._numbered, axis=0, out=chosen[step])
                if out is not None:
                    target = self._shares[chosen[step]] * self._samples
                    np.rint(np.subtract(target, largest, out=target), out=target)
                    places[step] = target
                np.subtract(errors, self._is_largest, out=errors)
                np.add(errors, increments, out=errors)
                self._samples += 1
            if out is not None:
                out[0][:, first : first + block] = chosen[:block].T
                out[1][:, first : first + block] = places[:block].T
            self._counts = np.rint(self._shares[:, None] * self._samples - errors)
        return self._counts.astype(np.int64)

    def _choose(self, largest: NDArray[np.float32]) -> None:
        """Mark one corpus per lane in ``_is_largest`` and ``_numbered``."""
        is_largest = self._is_largest
        np.greater_equal(self._errors, largest - _UNDECIDED, out=is_largest)
        if np.count_nonzero(is_largest) != len(largest):
            several = np.flatnonzero(is_largest.sum(axis=0, dtype=np.int16) > 1)
            targets = self._shares[:, None] * self._samples[several]
            counts = np.rint(targets - self._errors[:, several])
            winner = np.argmax(targets - counts, axis=0)
            is_largest[:, several] = False
            is_largest[winner, several] = True
        np.multiply(is_largest, self._numbers, out=self._numbered)
