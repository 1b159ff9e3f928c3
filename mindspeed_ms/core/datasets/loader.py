"""Micro-batches as dicts of stacked numpy arrays, read ahead of the training step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.core.datasets.samplers import (
    BatchSampler,
    MegatronPretrainingRandomSampler,
    MegatronPretrainingSampler,
)

Batch = dict[str, NDArray]

_PREFETCH_PER_WORKER = 2


class SampleDataset(Protocol):
    """Numbered samples, each a dict of arrays of equal shape."""

    def __len__(self) -> int: ...

    def __getitem__(self, idx: int) -> Mapping[str, NDArray]:
        """One sample."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSettings:
    """How a dataset is read on this rank.

    Raises:
        ValueError: an unknown dataloader type or a negative number of workers.
    """

    micro_batch_size: int
    """Samples per micro-batch of one rank (``--micro-batch-size``)."""

    data_parallel_rank: int = 0
    """This rank within the data-parallel group, context parallelism excluded."""

    data_parallel_size: int = 1
    """Number of data-parallel ranks, context parallelism excluded."""

    dataloader_type: Literal["single", "cyclic", "external"] = "single"
    """In order once, a new order each pass, or the dataset itself is the loader."""

    num_workers: int = 2
    """0: read when asked; above: one thread reads up to twice as many micro-batches ahead."""

    data_sharding: bool = True
    """With ``cyclic``, each rank keeps to its own part of the data."""

    def __post_init__(self) -> None:
        if self.dataloader_type not in ("single", "cyclic", "external"):
            raise ValueError(
                f"dataloader_type {self.dataloader_type!r} is unknown; use single, cyclic or "
                "external"
            )
        if self.num_workers < 0:
            raise ValueError(f"num_workers ({self.num_workers}) must be 0 or more")


class _Defaults:
    """Holder of the settings of this process."""

    def __init__(self) -> None:
        self.settings: LoaderSettings | None = None


_defaults = _Defaults()


def set_loader_defaults(settings: LoaderSettings | None) -> None:
    """Set what loaders of this process use when they are given no settings; None forgets."""
    _defaults.settings = settings


def get_loader_defaults() -> LoaderSettings:
    """Settings of this process.

    Raises:
        RuntimeError: none were set.
    """
    if _defaults.settings is None:
        raise RuntimeError(
            "no loader settings in this process; call set_loader_defaults at start (training does) "
            "or pass settings"
        )
    return _defaults.settings


def make_sampler(
    total_samples: int, consumed_samples: int, settings: LoaderSettings
) -> MegatronPretrainingSampler | MegatronPretrainingRandomSampler:
    """Sampler of a dataset of this size on this rank."""
    if settings.dataloader_type == "cyclic":
        return MegatronPretrainingRandomSampler(
            None,
            total_samples,
            consumed_samples,
            settings.micro_batch_size,
            settings.data_parallel_rank,
            settings.data_parallel_size,
            settings.data_sharding,
        )
    return MegatronPretrainingSampler(
        total_samples,
        consumed_samples,
        settings.micro_batch_size,
        settings.data_parallel_rank,
        settings.data_parallel_size,
    )


def collate(samples: Sequence[Mapping[str, NDArray]]) -> Batch:
    """Stack samples: each array gets a leading axis, micro-batch."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


class PretrainingDataLoader:
    """Micro-batches of one rank.

    Each iteration is one pass: of a ``cyclic`` sampler the rest of the current pass, then the next
    ones; of a ``single`` sampler always from the same starting point.

    Args:
        dataset: numbered samples.
        sampler: which of them, in which order.
        num_workers: 0 reads in the caller's thread; above, one thread reads up to twice as many
            micro-batches ahead.

    Attributes:
        consumed_samples: samples all data-parallel ranks have received together, those of earlier
            runs included; micro-batches read ahead do not count.
    """

    def __init__(self, dataset: SampleDataset, sampler: BatchSampler, num_workers: int = 0) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.consumed_samples = sampler.consumed_samples
        self._is_cyclic = isinstance(sampler, MegatronPretrainingRandomSampler)
        self._open: list[_ReadAhead] = []

    def __iter__(self) -> Iterator[Batch]:
        if not self._is_cyclic:
            self.consumed_samples = self.sampler.consumed_samples
        batches = self._read(self.sampler.batches(self.consumed_samples))
        if self.num_workers == 0:
            yield from self._count(batches)
            return
        ahead = _ReadAhead(batches, _PREFETCH_PER_WORKER * self.num_workers)
        self._open.append(ahead)
        try:
            yield from self._count(ahead)
        finally:
            ahead.close()
            self._open.remove(ahead)

    def close(self) -> None:
        """End the reading threads; a running iteration ends at its next step."""
        for ahead in list(self._open):
            ahead.close()

    def _read(self, batches: Iterator[list[int]]) -> Iterator[Batch]:
        for numbers in batches:
            yield collate([self.dataset[number] for number in numbers])

    def _count(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.consumed_samples += self.sampler.micro_batch_times_data_parallel_size
            yield batch


class _ReadAhead:
    """Runs an iterator in a thread, at most ``depth`` items ahead of the reader.

    An error of the iterator is raised at the reader, after the items before it.
    """

    def __init__(self, source: Iterator[Batch], depth: int) -> None:
        self._source = source
        self._depth = depth
        self._items: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._is_finished = False
        self._error: BaseException | None = None
        # A daemon, so that a reader that never closes cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, name="data-read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_finished or self._is_closed)
            if self._items and not self._is_closed:
                self._changed.notify_all()
                return self._items.popleft()
            error, self._error = self._error, None
        if error is not None and not self._is_closed:
            raise RuntimeError(f"reading the data ahead failed: {error}") from error
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait for it."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()
        # The garbage collector may close an abandoned reader from within this very thread.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                if not self._put(item):
                    break
        except BaseException as caught:  # noqa: BLE001  (handed to the reader)
            error = caught
        with self._changed:
            self._error = error
            self._is_finished = True
            self._changed.notify_all()

    def _put(self, item: Batch) -> bool:
        """Add an item when there is room; False when the reader closed."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._depth or self._is_closed)
            if not self._is_closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._is_closed
