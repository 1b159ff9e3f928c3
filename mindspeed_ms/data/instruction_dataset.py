# SPDX-License-Identifier: Apache-2.0
"""Instruction data as MindSpeed-LLM writes it: token files with labels beside them.

A prefix names three pairs of files, ``<prefix>_packed_input_ids_document``, ``_packed_labels_`` and
``_packed_attention_mask_``. Labels stand at the place of their own token and are -100 where nothing
is learned.

Source: MindSpeed-LLM 2.1 ``tasks/preprocess/decoder_packed_mtf_dataset.py``,
``tasks/posttrain/sft/sft_trainer.py`` (behaviour). Deliberate differences: the order of samples is
made anew at each start and not kept in a file beside the data; what fills up the last batch of a
split is taken from that split; what is cut is read from the inputs, where the original reads
labels.

Legend: s sequence.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig
from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.labelled import (
    IGNORE_INDEX,
    Sample,
    Shape,
    dense_mask,
    sample_of,
    with_documents,
)
from mindspeed_ms.data.utils import Split

KEYS = ("input_ids", "attention_mask", "labels")
"""What a record consists of, each in files of its own."""


def prefix_of(prefix: str, key: str) -> str:
    """Path, without ``.bin``, of the files of one key."""
    return f"{prefix}_packed_{key}_document"


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionDatasetConfig(GPTDatasetConfig):
    """Options of instruction data.

    Raises:
        ValueError: documents are to be told apart by their end, and no token ends them.
    """

    shuffle: bool = True
    """Each pass over the data in an order of its own (not ``--no-shuffle``)."""

    full_shuffle: bool = False
    """Shuffle all passes together as well (``--full-shuffle-instruction-dataset``)."""

    pass_multiple: int = 1
    """Samples of a pass are filled up to a multiple of this (``--padded-samples``)."""

    documents: bool = False
    """Records of a row see themselves only (``--reset-attention-mask``)."""

    neat_pack: bool = False
    """The attention mask numbers the records of a row (``--neat-pack``); else a token ends them."""

    end: int | None = None
    """That token."""

    plain_cut: bool = False
    """Cut the ends of long records off (``--cut-max-seqlen``). False: of questions and answers,
    in proportion.
    """

    length_multiple: int | None = None
    """Fill rows up to a multiple of this. None: to ``sequence_length``."""

    def __post_init__(self) -> None:
        # A dataclass with slots is a new class, which the argument-free super() does not know.
        super(InstructionDatasetConfig, self).__post_init__()
        if self.documents and not self.neat_pack and self.end is None:
            raise ValueError(
                "--reset-attention-mask parts the records of a row behind the token that ends "
                "them, and the tokenizer has none; give it an eos_token, or use --neat-pack with "
                "files made by it"
            )


class InstructionFiles:
    """The files of a prefix.

    Args:
        prefix: path without ``_packed_input_ids_document.bin``.
        config: how they are opened.

    Raises:
        FileNotFoundError: tokens or labels are missing.
        ValueError: malformed files, or files of unequal numbers of records.
    """

    def __init__(self, prefix: str, config: GPTDatasetConfig) -> None:
        self.prefix = prefix

        def opened(key: str) -> IndexedDataset:
            path = prefix_of(prefix, key)
            return IndexedDataset(path, config.mmap_bin_files, config.object_storage_cache_path)

        self.ids, self.labels = opened("input_ids"), opened("labels")
        self._masks: IndexedDataset | None = None
        if IndexedDataset.exists(prefix_of(prefix, "attention_mask")):
            self._masks = opened("attention_mask")
        for other in (self.labels, self._masks):
            if other is not None and not np.array_equal(
                other.sequence_lengths, self.ids.sequence_lengths
            ):
                raise ValueError(
                    f"{other.path_prefix} and {self.ids.path_prefix} differ in their records "
                    f"({len(other)} and {len(self.ids)}, or lengths); make them anew together"
                )

    def __len__(self) -> int:
        return len(self.ids)

    def mask(self, record: int) -> NDArray:
        """What the attention mask of a record holds.

        Raises:
            FileNotFoundError: it has none.
        """
        if self._masks is None:
            raise FileNotFoundError(
                f"{prefix_of(self.prefix, 'attention_mask')} not found; --neat-pack reads from it "
                "which record of a row a token belongs to"
            )
        return self._masks.get(record)


class InstructionDataset:
    """Records of questions and answers, of which the answers are learned.

    Each item holds ``tokens``, ``labels``, ``position_ids`` (int64 [s]), ``loss_mask`` (float32
    [s]) and, with documents, ``document_ids`` (int32 [s]). With a ``length_multiple``, s is
    that of the record, and ``collate`` fills a micro-batch up to its longest.

    Args:
        dataset: the files.
        dataset_path: their prefix.
        indices: records of this split.
        num_samples: samples needed; there are as many passes as give them. None: one, in order.
        index_split: which split this is.
        config: options.

    Raises:
        ValueError: the split has no record.
    """

    def __init__(
        self,
        dataset: InstructionFiles,
        dataset_path: str | None,
        indices: NDArray[np.int32],
        num_samples: int | None,
        index_split: Split,
        config: InstructionDatasetConfig,
    ) -> None:
        if not len(indices):
            raise ValueError(
                f"the {index_split.name} split of {dataset_path} has no record; give it a larger "
                "share with --split"
            )
        self.dataset = dataset
        self.dataset_path = dataset_path
        self.indices = indices
        self.index_split = index_split
        self.config = config
        self.order = indices if num_samples is None else sample_order(indices, num_samples, config)
        pad = config.tokenizer.pad
        self._pad = pad if pad is not None and pad >= 0 else config.end or 0
        self.unique_identifiers: Mapping[str, object] = {
            "class": type(self).__name__,
            "dataset_path": dataset_path,
            "num_samples": num_samples,
            "index_split": index_split.name,
            "random_seed": config.random_seed,
            "sequence_length": config.sequence_length,
            "shuffle": [config.shuffle, config.full_shuffle, config.pass_multiple],
        }

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: InstructionFiles) -> int:
        """Records."""
        return len(low_level_dataset)

    @staticmethod
    def build_low_level_dataset(
        dataset_path: str, config: InstructionDatasetConfig
    ) -> InstructionFiles:
        """Open the files of a prefix."""
        return InstructionFiles(dataset_path, config)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, idx: int | np.integer) -> Sample:
        record, limit = int(self.order[int(idx)]), self.config.sequence_length
        ids, targets = self.dataset.ids.get(record), self.dataset.labels.get(record)
        if len(ids) > limit:
            is_plain = self.config.documents or self.config.plain_cut
            kept = np.arange(limit) if is_plain else proportional_cut(targets, limit)
            ids, targets = ids[kept], targets[kept]
        # Each token predicts the one behind it; behind the last one there is none.
        labels = np.append(targets[1:], IGNORE_INDEX)
        length, multiple = limit, self.config.length_multiple
        if multiple is not None:
            length = min(limit, -(-len(ids) // multiple) * multiple)
        sample = sample_of(ids, labels, Shape(length, self._pad))
        if self.config.documents:
            sample = with_documents(sample, self._document_lengths(record, ids, length))
        if self.config.create_attention_mask:
            sample["attention_mask"] = dense_mask(length, sample.get("document_ids"))
        return sample

    def collate(self, samples: Sequence[Mapping[str, NDArray]]) -> dict[str, NDArray]:
        """Stack samples, the shorter ones filled up; each array gets a leading axis."""
        longest = max(len(sample["tokens"]) for sample in samples)
        return {
            name: np.stack([self._filled(name, sample[name], longest) for sample in samples])
            for name in samples[0]
        }

    def _filled(self, name: str, value: NDArray, length: int) -> NDArray:
        missing = length - value.shape[-1] if value.ndim else 0
        if not missing:
            return value
        if name == "attention_mask":
            return np.pad(value, ((0, 0), (0, missing), (0, missing)), constant_values=True)
        if name == "position_ids":
            return np.append(value, np.arange(value[-1] + 1, value[-1] + 1 + missing))
        if name == "document_ids":
            return np.append(value, np.full(missing, value[-1] + 1, value.dtype))
        fill = self._pad if name == "tokens" else 0
        return np.append(value, np.full(missing, fill, value.dtype))

    def _document_lengths(self, record: int, ids: NDArray, length: int) -> NDArray:
        """Tokens of each record of a row; what is filled up is one of its own."""
        if self.config.neat_pack:
            changes = np.flatnonzero(np.diff(self.dataset.mask(record)[: len(ids)])) + 1
        else:
            changes = np.flatnonzero(ids[:-1] == self.config.end) + 1
        bounds = np.unique(np.array([0, *changes, len(ids), length]))
        return np.diff(bounds)


def sample_order(
    indices: NDArray[np.int32], num_samples: int, config: InstructionDatasetConfig
) -> NDArray[np.int64]:
    """Records in the order in which they are samples: whole passes, until there are enough."""
    rng = np.random.RandomState(config.random_seed)
    passes: list[NDArray[np.int64]] = []
    one = indices.astype(np.int64)
    missing = -len(one) % config.pass_multiple
    one = np.concatenate([one, np.resize(one, missing)])
    for _ in range(max(1, -(-num_samples // len(one)))):
        this = one.copy()
        if config.shuffle:
            rng.shuffle(this)
        passes.append(this)
    order = np.concatenate(passes)
    if config.full_shuffle:
        numbers = order.tolist()
        random.Random(config.random_seed).shuffle(numbers)
        order = np.array(numbers, np.int64)
    return order


def proportional_cut(targets: NDArray, limit: int) -> NDArray[np.int64]:
    """Places of a record that are kept, at most ``limit``.

    Each turn, a question (``IGNORE_INDEX``) and its answer, keeps the beginnings of both: of the
    one that needs less than half of what is left, all.
    """
    is_asked = targets == IGNORE_INDEX
    starts = np.flatnonzero(is_asked & ~np.append(False, is_asked[:-1]))
    starts = np.unique(np.append(0, starts))
    kept: list[NDArray[np.int64]] = []
    room = limit
    for start, end in zip(starts, np.append(starts[1:], len(targets)), strict=True):
        if room <= 0:
            break
        turn = np.arange(start, end)
        asked = int(is_asked[start:end].sum())
        of_question, of_answer = _shares(asked, len(turn) - asked, room)
        kept += [turn[:of_question], turn[asked : asked + of_answer]]
        room -= of_question + of_answer
    return np.concatenate(kept)


def _shares(asked: int, answered: int, room: int) -> tuple[int, int]:
    """Tokens of a question and its answer that stay."""
    if 2 * answered < room:
        most = room
    elif 2 * asked < room:
        most = room - asked
    else:
        most = int(room * (answered / (asked + answered)))
    of_answer = min(most, answered)
    return min(max(room - of_answer, 0), asked), of_answer
