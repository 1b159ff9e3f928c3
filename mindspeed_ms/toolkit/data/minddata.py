# SPDX-License-Identifier: Apache-2.0
"""MindSpore datasets, and other batches of rows of tokens. Legend: b micro-batch, s sequence."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.data.labelled import Sample, Shape
from mindspeed_ms.engine.micro_batches import ROWS
from mindspeed_ms.toolkit.data.samples import sample_of_labels, sample_of_row
from mindspeed_ms.toolkit.messages import say_once

logger = logging.getLogger(__name__)

LABELS = "labels"
_APART = 1_000_003
"""Between the seeds of ranks that have batches of their own."""


def is_minddata(source: object) -> bool:
    """Whether it is a dataset of MindSpore."""
    return hasattr(source, "create_dict_iterator")


def own_branch(dataset: Any) -> Any:
    """The dataset, iterable again although another one was made from a part of it.

    MindSpore reads trees: a dataset from which two others were made, such as two ``batch`` of one
    ``GeneratorDataset``, is refused for having two consumers. Before this one is read, each of its
    parts is told that this one alone consumes it.
    """
    waiting, is_shared = [dataset], False
    while waiting:
        node = waiting.pop()
        for child in getattr(node, "children", ()):
            if len(getattr(child, "parent", ())) > 1:
                is_shared = True
                child.parent = [node]
            waiting.append(child)
    if is_shared:
        say_once(
            logger,
            "two datasets were made from one MindSpore dataset; they are read one at a time",
        )
    return dataset


def rows_per_batch(dataset: Any) -> int | None:
    """Rows of a batch of a MindSpore dataset; None if it yields single rows."""
    shapes = own_branch(dataset).output_shapes()
    return None if len(shapes[0]) < 2 else int(dataset.get_batch_size())


def rows_per_pass(dataset: Any) -> int:
    """Rows of a MindSpore dataset."""
    batches = int(own_branch(dataset).get_dataset_size())
    return batches * (rows_per_batch(dataset) or 1)


def batches_of(dataset: Iterable[Any]) -> Iterator[Mapping[str, NDArray]]:
    """One pass over batches: of a MindSpore dataset, of mappings, or of arrays [rows, s + 1].

    Raises:
        ValueError: several columns, and none is ``input_ids``.
    """
    if is_minddata(dataset):
        source = own_branch(dataset)
        batches = source.create_dict_iterator(output_numpy=True, num_epochs=1)  # type: ignore[attr-defined]
    else:
        batches = iter(dataset)
    for batch in batches:
        yield _columns(batch)


def _columns(batch: Any) -> Mapping[str, NDArray]:
    if isinstance(batch, list | tuple) and len(batch) == 1:
        batch = batch[0]
    if not isinstance(batch, Mapping):
        columns = {ROWS: _array(batch)}
    elif ROWS in batch:
        names = (ROWS, LABELS)
        columns = {name: _array(batch[name]) for name in names if batch.get(name) is not None}
    elif len(batch) == 1:
        columns = {ROWS: _array(next(iter(batch.values())))}
    else:
        raise ValueError(
            f"a batch has the columns {', '.join(map(str, batch))}; rows of tokens are read from "
            f"the column {ROWS}: name it so"
        )
    for name, value in columns.items():
        if not np.issubdtype(value.dtype, np.integer):
            raise ValueError(
                f"the column {name} of a batch holds {value.dtype}; tokens are whole numbers, and "
                "texts come as records of one text each"
            )
    return {name: np.atleast_2d(value) for name, value in columns.items()}


def _array(value: Any) -> NDArray:
    return value.asnumpy() if hasattr(value, "asnumpy") else np.asarray(value)


def samples_of(dataset: Iterable[Any], shape: Shape, seed: int, full_batch: bool) -> list[Sample]:
    """All samples of one pass, in memory: those of all ranks, if each rank has its own.

    Parallelism: collective over the world unless ``full_batch``.
    """
    reseed(seed, 0)
    samples = [sample for batch in batches_of(dataset) for sample in _samples(batch, shape)]
    if full_batch or comm.get_world_size() == 1:
        return samples
    return [sample for part in comm.all_gather_object(samples) for sample in part]


def _samples(batch: Mapping[str, NDArray], shape: Shape) -> Iterator[Sample]:
    labels = batch.get(LABELS)
    for number, row in enumerate(batch[ROWS]):
        if labels is None:
            yield sample_of_row(row, shape)
        else:
            yield sample_of_labels(row.tolist(), labels[number].tolist(), shape)


def reseed(seed: int, number_of_pass: int) -> None:
    """Start Python's and NumPy's generators, from which datasets draw, alike on all ranks."""
    random.seed(seed + number_of_pass)
    np.random.seed((seed + number_of_pass) % 2**32)


class MicroBatches:
    """Micro-batches of this rank, out of a dataset's batches of token rows, [rows, s + 1].

    A batch of all ranks is dealt out row by row: the first rows are the first micro-batch of
    data-parallel rank 0, the next ones that of rank 1, and so on. At the beginning of a pass the
    host's generators start anew, so that rows drawn at random are the same on the ranks that share
    a model, and in a run that goes on.

    Args:
        dataset: batches; a MindSpore dataset, arrays, or mappings with ``input_ids``.
        config: the configuration.
        full_batch: a batch holds the rows of all ranks. False: those of this rank.

    Raises:
        ValueError: a batch does not divide into micro-batches.
    """

    def __init__(self, dataset: Iterable[Any], config: AllConfig, full_batch: bool) -> None:
        self._dataset = dataset
        self._shape = shape_of(config)
        self._size = config.dataset_config.batch_size
        self._is_full = full_batch
        self._seed = config.training_config.seed or 0
        self._passes = 0

    def __iter__(self) -> Iterator[Mapping[str, NDArray]]:
        rank = parallel_state.get_data_parallel_rank()
        ranks = parallel_state.get_data_parallel_world_size()
        reseed(self._seed + (0 if self._is_full else _APART * rank), self._passes)
        self._passes += 1
        if not self._is_full:
            rank, ranks = 0, 1
        block = self._size * ranks
        waiting: dict[str, NDArray] = {}
        for columns in batches_of(self._dataset):
            rows = len(columns[ROWS])
            if rows > 1 and rows % block:
                raise ValueError(
                    f"the dataset yields batches of {rows} rows, which do not divide into "
                    f"micro-batches of {self._size} on {ranks} data-parallel ranks; use a "
                    f"multiple of {block}"
                )
            for name, value in columns.items():
                kept = waiting.get(name)
                waiting[name] = value if kept is None else np.concatenate([kept, value])
            while len(waiting[ROWS]) >= block:
                first = rank * self._size
                yield self._named({n: v[first : first + self._size] for n, v in waiting.items()})
                waiting = {name: value[block:] for name, value in waiting.items()}

    def _named(self, rows: Mapping[str, NDArray]) -> Mapping[str, NDArray]:
        if LABELS not in rows and rows[ROWS].shape[1] == self._shape.seq_length + 1:
            return {ROWS: rows[ROWS]}
        samples = list(_samples(rows, self._shape))
        return {name: np.stack([one[name] for one in samples]) for name in samples[0]}


def shape_of(config: AllConfig) -> Shape:
    """What samples of a run look like."""
    dataset = config.dataset_config
    return Shape(
        config.model_config.seq_length,
        pad=dataset.pad_token_id or 0,
        eod=dataset.eos_token_id,
        documents=dataset.reset_attention_mask,
    )
