# SPDX-License-Identifier: Apache-2.0
"""Which samples one data-parallel rank reads, micro-batch by micro-batch.

Source: Megatron-LM core 0.12 ``data/pretraining_loader.py`` (behaviour).
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.native import native_indices

_MAX_PERMUTATION = (2**32 - 1) // 20


class BatchSampler(Protocol):
    """Sample numbers of one data-parallel rank, and how many all ranks consume with them."""

    consumed_samples: int
    micro_batch_size: int
    data_parallel_rank: int
    micro_batch_times_data_parallel_size: int

    def __len__(self) -> int: ...

    def batches(self, consumed_samples: int) -> Iterator[list[int]]:
        """Micro-batches from a point to the end of the pass, without changing any state."""
        ...


class MegatronPretrainingSampler:
    """Samples in order: of each block of micro-batch x data-parallel size, rank r takes slice r.

    Args:
        total_samples: samples of the dataset.
        consumed_samples: samples all ranks read in earlier runs; reading starts behind them.
        micro_batch_size: samples per micro-batch of one rank.
        data_parallel_rank: this rank (context-parallel ranks read the same samples).
        data_parallel_size: number of data-parallel ranks.
        drop_last: leave out the last block when it is not full.

    Raises:
        ValueError: no sample left, or a rank or size out of range.
    """

    def __init__(
        self,
        total_samples: int,
        consumed_samples: int,
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        drop_last: bool = True,
    ) -> None:
        _check_sizes(total_samples, micro_batch_size, data_parallel_rank, data_parallel_size)
        if not 0 <= consumed_samples < total_samples:
            raise ValueError(
                f"consumed_samples ({consumed_samples}) must be less than the {total_samples} "
                "samples of the dataset; train longer with a larger --train-iters or more data"
            )
        self.total_samples = total_samples
        self.consumed_samples = consumed_samples
        self.micro_batch_size = micro_batch_size
        self.data_parallel_rank = data_parallel_rank
        self.micro_batch_times_data_parallel_size = micro_batch_size * data_parallel_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        return self.total_samples

    def __iter__(self) -> Iterator[list[int]]:
        return self.batches(self.consumed_samples)

    def batches(self, consumed_samples: int) -> Iterator[list[int]]:
        """Micro-batches from a point to the end of the data."""
        block = self.micro_batch_times_data_parallel_size
        offset = self.data_parallel_rank * self.micro_batch_size
        for first in range(consumed_samples, self.total_samples, block):
            end = min(first + block, self.total_samples)
            if end - first == block or not self.drop_last:
                start = first + offset
                yield list(range(min(start, end), min(start + self.micro_batch_size, end)))


class MegatronPretrainingRandomSampler:
    """Samples in an order that changes with each pass, seeded by the number of the pass.

    Args:
        dataset: the dataset; only its class of callers needs it (Megatron's signature).
        total_samples: samples of the dataset.
        consumed_samples: samples all ranks read in all passes; moves on as micro-batches are read.
        micro_batch_size: samples per micro-batch of one rank.
        data_parallel_rank: this rank.
        data_parallel_size: number of data-parallel ranks.
        data_sharding: each rank keeps to its own part of the data.

    Raises:
        ValueError: a rank or size out of range, data for less than one micro-batch per rank, or
            214 million samples without the compiled helper.
    """

    def __init__(  # noqa: PLR0913  (Megatron's signature)
        self,
        dataset: Sized | None,
        total_samples: int,
        consumed_samples: int,
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        data_sharding: bool,
    ) -> None:
        _check_sizes(total_samples, micro_batch_size, data_parallel_rank, data_parallel_size)
        self.dataset = dataset
        self.total_samples = total_samples
        self.consumed_samples = consumed_samples
        self.micro_batch_size = micro_batch_size
        self.data_parallel_rank = data_parallel_rank
        self.data_parallel_size = data_parallel_size
        self.data_sharding = data_sharding
        self.micro_batch_times_data_parallel_size = micro_batch_size * data_parallel_size
        self.last_batch_size = total_samples % self.micro_batch_times_data_parallel_size
        if self.last_batch_size == total_samples:
            raise ValueError(
                f"{total_samples} samples are fewer than one micro-batch per rank "
                f"({micro_batch_size} x {data_parallel_size}); add data or use smaller batches"
            )
        self._check_alignment(consumed_samples)

    def __len__(self) -> int:
        return self.total_samples

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches(self.consumed_samples):
            self.consumed_samples += self.micro_batch_times_data_parallel_size
            yield batch

    def batches(self, consumed_samples: int) -> Iterator[list[int]]:
        """Micro-batches from a point to the end of its pass."""
        self._check_alignment(consumed_samples)
        epoch, done = divmod(consumed_samples, self.total_samples - self.last_batch_size)
        size = self.micro_batch_size
        if self.data_sharding:
            bucket = self.total_samples // self.micro_batch_times_data_parallel_size * size
            start = self.data_parallel_rank * bucket
            order = randperm(bucket, epoch)[done // self.data_parallel_size :]
        else:
            start = 0
            order = randperm(self.total_samples // size * size, epoch)[done:]
            order = order[self.data_parallel_rank :: self.data_parallel_size]
        for first in range(0, len(order) - size + 1, size):
            yield [start + number for number in order[first : first + size].tolist()]

    def _check_alignment(self, consumed_samples: int) -> None:
        block = self.micro_batch_times_data_parallel_size
        done = consumed_samples % (self.total_samples - self.last_batch_size)
        if done % block:
            raise ValueError(
                f"consumed_samples ({consumed_samples}) stops inside a block of micro-batch x "
                f"data-parallel size ({block}); resume with the sizes the run was saved with"
            )


def randperm(length: int, seed: int) -> NDArray[np.int64]:
    """The permutation ``torch.randperm`` gives on CPU for a generator with this seed.

    Raises:
        ValueError: 214 million entries or more without the compiled helper.

    >>> sorted(randperm(5, 0).tolist())
    [0, 1, 2, 3, 4]
    """
    native = native_indices()
    if native is not None:
        return native.permutation(length, seed)
    if length >= _MAX_PERMUTATION:
        raise ValueError(
            f"a random order of {length} samples needs the compiled index builder from "
            f"{_MAX_PERMUTATION} samples on; install with a C++ compiler, or use --dataloader-type "
            "single, whose dataset is shuffled already"
        )
    order = list(range(length))
    draws = np.random.RandomState(seed).randint(0, 2**32, max(length - 1, 0), dtype=np.uint32)
    remaining = np.arange(length, 1, -1, dtype=np.uint32)
    for first, step in enumerate((draws % remaining).tolist()):
        other = first + step
        order[first], order[other] = order[other], order[first]
    return np.array(order, dtype=np.int64)


def _check_sizes(
    total_samples: int, micro_batch_size: int, data_parallel_rank: int, data_parallel_size: int
) -> None:
    if total_samples <= 0:
        raise ValueError(
            f"the dataset has {total_samples} samples; at least one is needed: add data or shorten "
            "--seq-length"
        )
    if micro_batch_size <= 0 or data_parallel_size <= 0:
        raise ValueError(
            f"micro_batch_size ({micro_batch_size}) and data_parallel_size ({data_parallel_size}) "
            "must be at least 1; set --micro-batch-size and check the layout"
        )
    if not 0 <= data_parallel_rank < data_parallel_size:
        raise ValueError(
            f"data_parallel_rank ({data_parallel_rank}) must be from 0 to data_parallel_size - 1 "
            f"({data_parallel_size - 1}); pass the rank within the data-parallel group"
        )
