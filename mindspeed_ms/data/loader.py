# SPDX-License-Identifier: Apache-2.0
"""Micro-batches as dicts of stacked numpy arrays, read ahead of the training step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.samplers import (
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
    """0: read when asked; above: so many threads read up to twice as many micro-batches ahead."""

    data_sharding: bool = True
    """With ``cyclic``, each rank keeps to its own part of the data."""

    drop_remainder: bool = True
    """With ``single``, leave out the samples at the end that do not fill a micro-batch."""

    def __post_init__(self) -> None:
        if self.dataloader_type not in ("single", "cyclic", "external"):
            raise ValueError(
                f"dataloader_type {self.dataloader_type!r} is unknown; use single, cyclic or "
                "external"
            )
        if self.num_workers < 0:
            raise ValueError(f"num_workers ({self.num_workers}) must be 0 or more")


def make_sampler(
    total_samples: int, consumed_samples: int, settings: LoaderSettings
) -> MegatronPretrainingSampler | MegatronPretrainingRandomSampler:
    """Sampler of a dataset of this size on this rank.

    That of a ``cyclic`` run stands behind the consumed samples; another one at the beginning of a
    pass, which may be any: ``PretrainingDataLoader.start_at`` knows how long they are.
    """
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
        0,
        settings.micro_batch_size,
        settings.data_parallel_rank,
        settings.data_parallel_size,
        drop_last=settings.drop_remainder,
    )


def collate(samples: Sequence[Mapping[str, NDArray]]) -> Batch:
    """Stack samples: each array gets a leading axis, micro-batch."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


class PretrainingDataLoader:
    """Micro-batches of one rank.

    Each iteration is one pass: the first one what the sampler has left of its pass, the later ones
    a whole pass, of a ``cyclic`` sampler in another order.

    Args:
        dataset: numbered samples.
        sampler: which of them, in which order.
        num_workers: 0 reads in the caller's thread; above, so many threads read up to twice as
            many micro-batches ahead. They share the dataset, so it must not change when read.

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
        self._is_begun = False
        self._open: list[_ReadAhead] = []

    def __iter__(self) -> Iterator[Batch]:
        start = self.consumed_samples
        if not self._is_cyclic:
            start = 0 if self._is_begun else self.sampler.consumed_samples
        self._is_begun = True
        numbers = self.sampler.batches(start)
        if self.num_workers == 0:
            yield from self._count(map(self._read, numbers))
            return
        ahead = _ReadAhead(numbers, self._read, self.num_workers)
        self._open.append(ahead)
        try:
            yield from self._count(ahead)
        finally:
            ahead.close()
            self._open.remove(ahead)

    @property
    def is_begun(self) -> bool:
        """Whether a pass has been started."""
        return self._is_begun

    @property
    def batches_per_pass(self) -> int:
        """Micro-batches of this rank in a whole pass."""
        total, block = len(self.sampler), self.sampler.micro_batch_times_data_parallel_size
        is_cut = self._is_cyclic or getattr(self.sampler, "drop_last", True)
        return max(1, total // block if is_cut else -(-total // block))

    def start_at(self, consumed_samples: int) -> None:
        """Begin anew behind so many samples of all ranks; passes that they fill are over."""
        per_pass = self.batches_per_pass * self.sampler.micro_batch_times_data_parallel_size
        self.consumed_samples = consumed_samples
        self.sampler.consumed_samples = (
            consumed_samples if self._is_cyclic else consumed_samples % per_pass
        )
        self._is_begun = False

    def check_ranks(self, settings: LoaderSettings) -> None:
        """Refuse a run whose ranks share the data in another way.

        Raises:
            ValueError: another batch size or layout, or the data of another rank.
        """
        sampler, ranks = self.sampler, settings.data_parallel_size
        mine = (sampler.micro_batch_size, sampler.data_parallel_rank)
        block = sampler.micro_batch_times_data_parallel_size
        wanted = (settings.micro_batch_size, settings.data_parallel_rank)
        if mine != wanted or block != settings.micro_batch_size * ranks:
            raise ValueError(
                f"the loader was made for micro-batches of {mine[0]} on rank {mine[1]} of "
                f"{block // mine[0]} data-parallel ranks, but the run has micro-batches of "
                f"{wanted[0]} and is on rank {wanted[1]} of {ranks}; make it anew for this layout"
            )

    def close(self) -> None:
        """End the reading threads; a running iteration ends at its next step."""
        for ahead in list(self._open):
            ahead.close()

    def _read(self, numbers: list[int]) -> Batch:
        stack = getattr(self.dataset, "collate", collate)  # samples of unequal lengths
        return stack([self.dataset[number] for number in numbers])

    def _count(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.consumed_samples += self.sampler.micro_batch_times_data_parallel_size
            yield batch


class _ReadAhead:
    """Applies a function to the items of an iterator in threads; gives the results in order.

    At most twice as many results as threads are kept. An error of the iterator or the function is
    raised at the reader, after the results before it.
    """

    def __init__(
        self, source: Iterator[list[int]], read: Callable[[list[int]], Batch], num_threads: int
    ) -> None:
        self._source = source
        self._read = read
        self._depth = _PREFETCH_PER_WORKER * num_threads
        self._results: dict[int, Batch | BaseException] = {}
        self._num_taken = 0
        self._num_given = 0
        self._is_exhausted = False
        self._is_closed = False
        self._changed = threading.Condition()
        # Daemons, so that a reader that never closes cannot keep the process alive.
        self._threads = [
            threading.Thread(target=self._run, name="data-read-ahead", daemon=True)
            for _ in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        with self._changed:
            self._changed.wait_for(self._is_decided)
            if self._is_closed or self._num_given not in self._results:
                raise StopIteration
            result = self._results.pop(self._num_given)
            self._num_given += 1
            self._changed.notify_all()
        if isinstance(result, BaseException):
            raise RuntimeError(f"reading the data ahead failed: {result}") from result
        return result

    def close(self) -> None:
        """Stop the threads and wait for them."""
        with self._changed:
            self._is_closed = True
            self._results.clear()
            self._changed.notify_all()
        for thread in self._threads:
            # The garbage collector may close an abandoned reader from within one of them.
            if threading.current_thread() is not thread:
                thread.join()

    def _is_decided(self) -> bool:
        """Whether the next result is there, or will never come."""
        is_over = self._is_exhausted and self._num_given == self._num_taken
        return self._is_closed or is_over or self._num_given in self._results

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            number, item = taken
            result: Batch | BaseException
            try:
                result = item if isinstance(item, BaseException) else self._read(item)
            except BaseException as error:  # noqa: BLE001  (handed to the reader)
                result = error
            with self._changed:
                if not self._is_closed:
                    self._results[number] = result
                self._is_exhausted |= isinstance(result, BaseException)
                self._changed.notify_all()

    def _take(self) -> tuple[int, list[int] | BaseException] | None:
        """Take the next item of the source when there is room; None when there is no more to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_closed
                    or self._is_exhausted
                    or self._num_taken - self._num_given < self._depth
                )
            )
            if self._is_closed or self._is_exhausted:
                return None
            item: list[int] | BaseException | None
            try:
                item = next(self._source, None)
            except Exception as error:  # noqa: BLE001  (handed to the reader)
                item = error
            if item is None:
                self._is_exhausted = True
                self._changed.notify_all()
                return None
            self._num_taken += 1
            return self._num_taken - 1, item
