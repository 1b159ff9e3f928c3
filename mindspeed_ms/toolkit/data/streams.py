# SPDX-License-Identifier: Apache-2.0
"""Texts and conversations that come one after another, without numbers, as rows of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.labelled import IGNORE_INDEX, Shape
from mindspeed_ms.toolkit.data.conversations import Writer, fitted, rows_of_texts

_TEXTS = ("messages", "conversations", "prompt", "instruction")
_END: Any = object()


@dataclass(frozen=True, slots=True)
class Written:
    """What a stream yields, as batches of ids; batches of ids pass through as they are.

    A text is not kept longer than its rows last, so a stream need not fit into memory.

    Args:
        source: batches, or records; the first one tells which.
        write: gives what turns texts into ids.
        shape: of the samples.
        key: what it is for, for messages.
    """

    source: Iterable[Any]
    write: Callable[[], Writer]
    shape: Shape
    key: str

    def __iter__(self) -> Iterator[Any]:
        """One pass.

        Raises:
            ValueError: a record that cannot be used, by its number.
        """
        batches = iter(self.source)
        first = next(batches, _END)
        if first is _END:
            return
        every = itertools.chain([first], batches)
        if not _is_text(first):
            yield from every
            return
        written = self.write().write_all(every, self.key)
        if "text" in first:
            written = ((row, [True] * len(row)) for row in rows_of_texts(written, self.shape))
        for ids, learned in fitted(written, self.shape):
            yield self._row(ids, learned)

    def _row(self, ids: list[int], learned: list[bool]) -> Mapping[str, NDArray]:
        """Ids and labels, each of s + 1 tokens."""
        room = self.shape.seq_length + 1 - len(ids)
        labels = [own if is_in else IGNORE_INDEX for own, is_in in zip(ids, learned, strict=True)]
        return {
            "input_ids": np.array(ids + room * [self.shape.pad], np.int64),
            "labels": np.array(labels + room * [IGNORE_INDEX], np.int64),
        }


def _is_text(first: Any) -> bool:
    """Whether it is a record that a tokenizer reads."""
    if not isinstance(first, Mapping) or "input_ids" in first:
        return False
    return isinstance(first.get("text"), str) or any(name in first for name in _TEXTS)


def is_dealt_out(source: Any) -> bool:
    """Whether a stream is the same on all ranks, which share its rows, as in ``transformers``.

    So is one of Hugging Face, unless ``split_dataset_by_node`` has given each rank its own.
    """
    is_of_hugging_face = hasattr(source, "features") and hasattr(source, "num_shards")
    return is_of_hugging_face and getattr(source, "_distributed", None) is None
