# SPDX-License-Identifier: Apache-2.0
"""Samples that are rows of equal length already: ``input_ids`` of ``seq_length + 1`` tokens.

MindRecord files made for MindSpore's own trainers hold such rows. Opened once, their rows are kept
as one ``.npy`` file that is mapped into memory, because MindRecord is read from front to back only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from mindspore.mindrecord import FileReader
from numpy.typing import NDArray

from mindspeed_ms.data import mindrecord_file
from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig
from mindspeed_ms.data.index_cache import map_array
from mindspeed_ms.data.masks import get_ltor_masks_and_position_ids
from mindspeed_ms.data.object_store import is_remote
from mindspeed_ms.data.token_check import first_outside
from mindspeed_ms.data.utils import Split
from mindspeed_ms.files.whole import appears_whole

logger = logging.getLogger(__name__)

COLUMN = "input_ids"
_INT32 = np.iinfo(np.int32)
_ROW_FILE = re.compile(r"\.(npy|mindrecord\d*)$")


def is_row_file(path: str) -> bool:
    """Whether a name is that of a file of rows; MindRecord numbers the shards of a set."""
    return _ROW_FILE.search(path) is not None


def sample_from_row(row: NDArray, config: GPTDatasetConfig) -> dict[str, NDArray]:
    """Tokens, labels and masks of a row of ``seq_length + 1`` tokens.

    Labels equal to the pad token do not count.
    """
    text = row.astype(np.int64)
    tokens, labels = text[:-1].copy(), text[1:].copy()
    masks = get_ltor_masks_and_position_ids(
        tokens,
        config.eod,
        reset_position_ids=config.reset_position_ids,
        reset_attention_mask=config.reset_attention_mask,
        eod_mask_loss=config.eod_mask_loss,
        create_attention_mask=config.create_attention_mask,
    )
    loss_mask = masks.loss_mask
    loss_mask[labels == config.pad_id] = 0.0
    item: dict[str, NDArray] = {"tokens": tokens, "labels": labels}
    if masks.attention_mask is not None:
        item["attention_mask"] = masks.attention_mask
    if masks.document_ids is not None:
        item["document_ids"] = masks.document_ids
    return item | {"loss_mask": loss_mask, "position_ids": masks.position_ids}


class TokenRowsDataset:
    """Rows in their own order, pass after pass until ``num_samples`` are given.

    Args:
        rows: [rows, seq_length + 1] token ids.
        dataset_path: where they come from.
        indexed_indices: rows of this split.
        num_samples: samples needed; None for one pass.
        index_split: which split this is.
        config: options.

    Raises:
        ValueError: the split has no row, or rows have another length.
    """

    def __init__(
        self,
        rows: NDArray,
        dataset_path: str | None,
        indexed_indices: NDArray[np.int32],
        num_samples: int | None,
        index_split: Split,
        config: GPTDatasetConfig,
    ) -> None:
        if not len(indexed_indices):
            raise ValueError(
                f"the {index_split.name} split of {dataset_path} has no row; give it a larger "
                "share with --split"
            )
        if rows.dtype.kind not in "iu":
            raise ValueError(
                f"{dataset_path} holds numbers of type {rows.dtype.name}, token ids are integers; "
                "give another file"
            )
        if rows.ndim != 2 or rows.shape[1] != config.sequence_length + 1:
            raise ValueError(
                f"{dataset_path} holds rows of shape {rows.shape[1:]}, expected is "
                f"({config.sequence_length + 1},): sequence length plus one; set --seq-length to "
                "fit the data"
            )
        self.rows = rows
        self.dataset_path = dataset_path
        self.indices = indexed_indices
        self.index_split = index_split
        self.config = config
        self._length = len(indexed_indices) if num_samples is None else num_samples
        self.unique_identifiers: Mapping[str, object] = {
            "class": type(self).__name__,
            "dataset_path": dataset_path,
            "num_samples": num_samples,
            "index_split": index_split.name,
            "sequence_length": config.sequence_length,
        }

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: NDArray) -> int:
        """Rows."""
        return len(low_level_dataset)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: GPTDatasetConfig) -> NDArray:
        """Open a ``.npy`` or MindRecord file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read, or holds no rows.
        """
        return open_rows(dataset_path, config.path_to_cache)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, idx: int | np.integer) -> dict[str, NDArray]:
        number = self.indices[int(idx) % len(self.indices)]
        row = self.rows[number]
        at = first_outside(row, self.config.tokenizer.vocab_size)
        if at is not None:
            size = self.config.tokenizer.vocab_size
            raise ValueError(
                f"row {number} of {self.dataset_path} holds token id {row[at]}, the vocabulary has "
                f"{size} ids (0 to {size - 1}); use the tokenizer the data was made with"
            )
        return sample_from_row(row, self.config)


def open_rows(path: str, cache: str | None = None) -> NDArray:
    """Rows of a ``.npy`` or MindRecord file.

    Args:
        path: of the file.
        cache: folder for copies of MindRecord's rows; None: one beside the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no rows.
    """
    if is_remote(path):
        raise ValueError(
            f"{path}: of object storage .bin/.idx pairs are read; mount the bucket for other files"
        )
    if path.endswith(".npy"):
        return _map(Path(path))
    return open_mindrecord(path, cache or os.path.join(f"{path}_cache", "TokenRows"))


def open_mindrecord(path: str, cache_directory: str) -> NDArray:
    """Rows of a MindRecord file, through their copy in the cache directory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no MindRecord file, has no ``input_ids``, or its rows differ in length.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} not found; give the path of a MindRecord file")
    stamp = os.path.abspath(path)
    for file in (path, f"{path}.db"):
        found = os.stat(file) if os.path.exists(file) else None
        stamp += f" {found.st_size} {found.st_mtime_ns}" if found else " none"
    name = hashlib.md5(stamp.encode(), usedforsecurity=False).hexdigest()
    target = Path(cache_directory) / f"{name}-TokenRows.npy"
    if not target.is_file():
        logger.info("copying the rows of %s to %s", path, target)
        _copy_rows(path, target)
    return _map(target)


def _copy_rows(path: str, target: Path) -> None:
    mindrecord_file.check(path, COLUMN)
    with _refused(path):
        reader = FileReader([path], columns=[COLUMN])  # a path alone means all shards of its set
    with closing(reader), appears_whole(target) as unfinished:
        count, first = reader.len(), None
        out: np.memmap | None = None
        for number, record in enumerate(_records(path, reader)):
            row = np.asarray(record[COLUMN]).reshape(-1)
            if out is None:
                first = len(row)
                out = np.lib.format.open_memmap(unfinished, "w+", np.int32, (count, first))
            if len(row) != first:
                raise ValueError(
                    f"row {number} of {path} has {len(row)} tokens, row 0 has {first}; rows must "
                    "be of equal length"
                )
            if row.size and not _INT32.min <= row.min() <= row.max() <= _INT32.max:
                raise ValueError(f"row {number} of {path} holds numbers that are no token ids")
            out[number] = row
        if out is None:
            raise ValueError(f"{path} holds no row; give another file")
        out.flush()


@contextmanager
def _refused(path: str) -> Iterator[None]:
    """What MindSpore says of a file is one line."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (MindRecord raises RuntimeError, MRMOpenError, ...)
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"{path} is not a MindRecord file with a column {COLUMN!r} ({type(error).__name__}: "
            f"{reason}); give another file"
        ) from error


def _records(path: str, reader: FileReader) -> Iterator[Mapping[str, NDArray]]:
    rows = iter(reader.get_next())
    while True:
        with _refused(path):
            row = next(rows, None)
        if row is None:
            return
        yield row


def _map(path: Path) -> NDArray:
    try:
        return map_array(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found; give the path of an .npy file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as rows of tokens ({error})") from error
