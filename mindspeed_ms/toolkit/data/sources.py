# SPDX-License-Identifier: Apache-2.0
"""What a user gives as data, and what a run reads of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindspeed_ms.config import AllConfig
from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.loader import SampleDataset
from mindspeed_ms.data.token_rows import is_row_file, open_rows
from mindspeed_ms.files.regular_file import read_bytes
from mindspeed_ms.toolkit.data import conversations, minddata
from mindspeed_ms.toolkit.data.conversations import Writer
from mindspeed_ms.toolkit.data.local import TEXT_FILES, find_data
from mindspeed_ms.toolkit.data.minddata import shape_of
from mindspeed_ms.toolkit.data.samples import Made, Rows
from mindspeed_ms.toolkit.data.streams import Written, is_dealt_out
from mindspeed_ms.toolkit.paths import require_local, usable

MakeWriter = Callable[[], Writer]
"""Finds the tokenizer when it is needed; raises ValueError if there is none."""


@dataclass(slots=True)
class Source:
    """Data of one split.

    Exactly one of the fields is set.
    """

    token_files: tuple[str, ...] = ()
    """Prefixes of ``.bin/.idx`` pairs, which the engine reads."""
    row_files: tuple[str, ...] = ()
    """``.npy`` and MindRecord files of rows."""
    records: Iterable[Mapping[str, Any]] | None = None
    """Records of texts, conversations or ids."""
    batches: Iterable[Any] | None = None
    """Batches of rows of tokens, a MindSpore dataset's or any others'."""
    samples: SampleDataset | None = None
    """Samples as the engine's datasets give them."""
    key: str = "data"
    """What it is for, for messages."""
    _made: dict[object, SampleDataset] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any, key: str) -> Source:
        """Tell what kind of data it is.

        Args:
            given: a path, a MindSpore dataset, a dataset of Hugging Face, rows, records, batches.
            key: what it is for, for messages.

        Raises:
            ValueError: a path without data, or data of no known kind.
        """
        if isinstance(given, str | os.PathLike):
            return cls._of_path(os.fspath(given), key)
        if minddata.is_minddata(given):
            return cls(batches=given, key=key)
        if isinstance(given, np.ndarray):
            return cls(key=key, records=[{"input_ids": row} for row in np.atleast_2d(given)])
        if not hasattr(given, "__iter__") and not hasattr(given, "__getitem__"):
            raise ValueError(
                f"{key}: {type(given).__name__} is no data; give a path, a MindSpore dataset, a "
                "dataset of Hugging Face, or a list of records"
            )
        if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
            return cls(batches=given, key=key)
        if not len(given):
            raise ValueError(f"{key} is empty; give data with at least one record")
        if isinstance(given, Mapping):
            name = next(iter(given))
            raise ValueError(
                f"{key} is a mapping with the keys {', '.join(map(str, given))}; give a list of "
                f"records, each a mapping, or one of its splits, as in {key}=data[{name!r}]"
            )
        first = given[0]
        if isinstance(first, Mapping) and "tokens" in first and "labels" in first:
            return cls(samples=given, key=key)
        if isinstance(first, Mapping):
            ids = first.get("input_ids")
            is_batch = _num_axes(ids) == 2
            return (
                cls(batches=given, key=key) if is_batch else cls(key=key, records=_numbered(given))
            )
        if isinstance(first, str):
            return cls(key=key, records=[{"text": text} for text in given])
        if _num_axes(first) == 2:
            return cls(batches=given, key=key)
        return cls(key=key, records=[{"input_ids": row} for row in given])

    @classmethod
    def _of_path(cls, name: str, key: str) -> Source:
        require_local(name, key)
        found = find_data(usable(name), key)
        if found[0].endswith(TEXT_FILES):
            records = list(read_texts(found, key))
            if not records:
                raise ValueError(f"{key}: {found[0]} holds no record; give one with text")
            return cls(key=key, records=records)
        if is_row_file(found[0]):
            return cls(row_files=found)
        return cls(token_files=found)

    @property
    def are_texts(self) -> bool:
        """Whether a tokenizer is needed."""
        first = next(iter(self.records), None) if self.records is not None else None
        return first is not None and "input_ids" not in first

    def dataset(
        self, config: AllConfig, write: MakeWriter, *, full_batch: bool, packing: bool = False
    ) -> SampleDataset:
        """The numbered samples of a run, all of the data once.

        Args:
            config: of the run.
            write: gives what turns texts into ids.
            full_batch: a MindSpore dataset yields the rows of all ranks.
            packing: several records share a sample.

        Raises:
            ValueError: data that does not fit.

        Parallelism: collective over the world for batches.
        """
        if self.samples is not None:
            return self.samples
        shape = shape_of(config)
        known = (shape, packing)
        if known not in self._made:
            self._made[known] = self._make(config, write, full_batch=full_batch, packing=packing)
        return self._made[known]

    def _make(
        self, config: AllConfig, write: MakeWriter, *, full_batch: bool, packing: bool
    ) -> SampleDataset:
        shape = shape_of(config)
        if self.row_files:
            cache = config.dataset_config.data_cache_path
            arrays = [open_rows(name, cache) for name in self.row_files]
            return Rows(arrays, shape, config.dataset_config.pad_token_id)
        if self.batches is not None:
            batches = self.rows_of_tokens(config, write, packing=packing)
            seed = config.training_config.seed or 0
            is_full = self.is_of_all_ranks(full_batch)
            return Made(minddata.samples_of(batches, shape, seed, is_full))
        assert self.records is not None, "a source has one kind of data"
        writer = write() if self.are_texts else Writer(None)
        written = writer.write_all(self.records, self.key)
        if packing:
            return Made(conversations.packed(written, shape))
        if "text" in next(iter(self.records)):
            return Made(conversations.stream(written, shape))
        return Made(conversations.one_each(written, shape, may_cut=self.are_texts))

    def is_of_all_ranks(self, full_batch: bool) -> bool:
        """Whether what is read on a rank is that of all of them."""
        return full_batch or is_dealt_out(self.batches)

    def rows_of_tokens(
        self, config: AllConfig, write: MakeWriter, *, packing: bool
    ) -> Iterable[Any]:
        """The batches; texts among them are written when they are read.

        Raises:
            ValueError: texts that have no numbers shall share samples.
        """
        assert self.batches is not None, "there are batches"
        if minddata.is_minddata(self.batches):
            return self.batches
        if packing:
            raise ValueError(
                f"packing: {self.key} has no numbered records to be packed; give a list of them, "
                "or packing=False"
            )
        return Written(self.batches, write, shape_of(config), self.key)

    def num_sequences(
        self, config: AllConfig, readers: int, dataset: SampleDataset | None
    ) -> int | None:
        """Sequences of one pass of all ranks; None if nobody knows.

        Args:
            config: of the run.
            readers: ranks that each have batches of their own.
            dataset: the numbered samples, if they are what is read.
        """
        if dataset is not None:
            return len(dataset)
        if self.token_files:
            tokens = sum(
                int(IndexedDataset(name).sequence_lengths.sum()) for name in self.token_files
            )
            return (tokens - 1) // config.model_config.seq_length
        if minddata.is_minddata(self.batches):
            return readers * minddata.rows_per_pass(self.batches)
        if isinstance(self.batches, Sequence):
            return readers * sum(
                len(one["input_ids"] if isinstance(one, Mapping) else one) for one in self.batches
            )
        return None


def _num_axes(given: Any) -> int:
    """Axes of an array; 0 of what is none, as rows of unequal lengths."""
    try:
        return np.ndim(given)
    except ValueError:
        return 0


def _numbered(given: Any) -> Iterable[Mapping[str, Any]]:
    """Records of anything that has numbers, iterable more than once."""
    return given if isinstance(given, list | tuple) else _Records(given)


class _Records:
    def __init__(self, given: Any) -> None:
        self._given = given

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self._given[number] for number in range(len(self._given)))


def read_texts(files: Sequence[str], key: str) -> Iterator[Mapping[str, Any]]:
    """Records of text files: a line of JSON each, a list in JSON, or a whole text.

    Raises:
        ValueError: a file that is no JSON, or no text.
    """
    for name in files:
        try:
            text = read_bytes(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{key}: {name} is no text in UTF-8 ({error})") from None
        if name.endswith(".jsonl"):
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    yield _record(line, f"{key}: line {number} of {name}")
        elif name.endswith(".json"):
            found = _parsed(text, f"{key}: {name}")
            yield from found if isinstance(found, list) else [found]
        else:
            yield {"text": text}


def _record(line: str, where: str) -> Mapping[str, Any]:
    found = _parsed(line, where)
    if not isinstance(found, dict):
        raise ValueError(f"{where} is a JSON {type(found).__name__}, not an object; correct it")
    return found


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}); correct it") from None
