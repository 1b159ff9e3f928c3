# SPDX-License-Identifier: Apache-2.0
"""Samples of equal length cut from documents, for next-token training.

Source: Megatron-LM core 0.12 ``data/gpt_dataset.py`` (behaviour, cache names). Deliberate
differences: a padded validation sample does not change the loss mask of later samples, and no
attention mask is made unless asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.gpt_dataset_config import (
    GPTDatasetConfig,
    GPTFIMDatasetConfig,
    TokenizerInfo,
    TokenizerLike,
)
from mindspeed_ms.data.gpt_indices import GPTIndices, are_indices_of, build_gpt_indices
from mindspeed_ms.data.index_cache import IndexCache, describe, description_hash
from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.masks import MasksAndPositionIds, get_ltor_masks_and_position_ids
from mindspeed_ms.data.object_store import is_remote
from mindspeed_ms.data.token_check import can_exceed, first_outside, wrong_id
from mindspeed_ms.data.utils import Split

__all__ = [
    "GPTDataset",
    "GPTDatasetConfig",
    "GPTFIMDatasetConfig",
    "MockGPTDataset",
    "MockGPTLowLevelDataset",
    "TokenizerInfo",
]

logger = logging.getLogger(__name__)

_INDEX_NAMES = ("document_index", "sample_index", "shuffle_index")


class SequenceStore(Protocol):
    """Where the tokens come from: a token file or made-up data."""

    @property
    def sequence_lengths(self) -> NDArray[np.int32]:
        """Tokens of each sequence."""
        ...

    def get(self, idx: int | np.integer, offset: int = 0, length: int | None = None) -> NDArray:
        """Part of one sequence."""
        ...


class GPTDataset:
    """Samples of ``sequence_length`` tokens from one corpus.

    Each item is a dict of ``tokens`` and ``labels`` (int64 [s]), ``loss_mask`` (float32 [s]),
    ``position_ids`` (int64 [s]) and, when asked for, ``document_ids`` (int32 [s]) and
    ``attention_mask`` (bool [1, s, s], True = masked). Arrays that are equal for all items are
    shared and read-only.

    Args:
        indexed_dataset: the token file.
        dataset_path: its prefix as the user wrote it; part of the cache names.
        indexed_indices: numbers of the sequences that belong to this split.
        num_samples: samples needed, or None for one pass over the sequences.
        index_split: which split this is.
        config: options.

    Raises:
        ValueError: the split holds no token, or the index cache cannot be read or written.
    """

    def __init__(
        self,
        indexed_dataset: SequenceStore,
        dataset_path: str | None,
        indexed_indices: NDArray[np.int32],
        num_samples: int | None,
        index_split: Split,
        config: GPTDatasetConfig,
    ) -> None:
        self.dataset = indexed_dataset
        self.dataset_path = dataset_path
        self.indices = np.asarray(indexed_indices, dtype=np.int32)
        self.num_samples = num_samples
        self.index_split = index_split
        self.config = config
        self.unique_identifiers = self._identifiers()
        self.unique_description = describe(self.unique_identifiers)
        self.unique_description_hash = description_hash(self.unique_description)
        self._extra = int(config.add_extra_token_to_sequence)
        self._pad_id = config.pad_id
        self._eod_id = config.eod
        self._shared_masks: MasksAndPositionIds | None = None
        self._vocab_size: int | None = None
        """None: the type of the tokens holds no id beyond the vocabulary."""
        if isinstance(indexed_dataset, IndexedDataset):
            size = config.tokenizer.vocab_size
            self._vocab_size = size if can_exceed(indexed_dataset.dtype, size) else None
        self.document_index, self.sample_index, self.shuffle_index = self._load_or_build()

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: SequenceStore) -> int:
        """Units that ``split`` divides: sequences, normally one per document."""
        return len(low_level_dataset.sequence_lengths)

    @staticmethod
    def build_low_level_dataset(
        dataset_path: str | None, config: GPTDatasetConfig
    ) -> SequenceStore:
        """Open the token file, or make up data when there is no path."""
        if dataset_path is None:
            return MockGPTLowLevelDataset(config.tokenizer)
        return IndexedDataset(dataset_path, config.mmap_bin_files, config.object_storage_cache_path)

    def __len__(self) -> int:
        return len(self.sample_index) - 1

    def __getitem__(self, idx: int | np.integer) -> dict[str, NDArray]:
        text = self._text(int(self.shuffle_index[idx]), int(idx))
        if self._extra:
            tokens, labels = text[:-1].copy(), text[1:].copy()
        else:
            tokens, labels = text, np.append(text[1:], self._pad_id)
        masks = self._masks(tokens)
        is_filled = labels == self._pad_id
        loss_mask = masks.loss_mask
        if is_filled.any():
            loss_mask = np.where(is_filled, np.float32(0), loss_mask)
            labels[is_filled] = 0
        tokens[tokens == self._pad_id] = 0
        item: dict[str, NDArray] = {"tokens": tokens, "labels": labels}
        if masks.attention_mask is not None:
            item["attention_mask"] = masks.attention_mask
        item["loss_mask"] = loss_mask
        item["position_ids"] = masks.position_ids
        if masks.document_ids is not None:
            item["document_ids"] = masks.document_ids
        return item

    def _text(self, row: int, number: int) -> NDArray[np.int64]:
        """Tokens of one row of the sample index, filled up to full length.

        ``number`` is that of the sample, for subclasses that change its tokens.
        """
        del number
        first, offset = (int(value) for value in self.sample_index[row])
        last, last_offset = (int(value) for value in self.sample_index[row + 1])
        parts = []
        for place in range(first, last + 1):
            begin = offset if place == first else 0
            length = last_offset + self._extra - begin if place == last else None
            parts.append(self.dataset.get(self.document_index[place], begin, length))
        missing = self.config.sequence_length + self._extra - sum(len(part) for part in parts)
        text = np.concatenate(parts, dtype=np.int64)
        if self._vocab_size is not None:
            at = first_outside(text, self._vocab_size)
            if at is not None:
                raise self._wrong_id(row, at, int(text[at]))
        if missing > 0:
            text = np.append(text, np.full(missing, self._pad_id, np.int64))
        return text

    def _wrong_id(self, row: int, at: int, token: int) -> ValueError:
        """An error about token ``at`` of a row, which the model has no embedding for."""
        assert isinstance(self.dataset, IndexedDataset), "made-up tokens lie in the vocabulary"
        place, offset = (int(value) for value in self.sample_index[row])
        at += offset
        while at >= (size := int(self.dataset.sequence_lengths[self.document_index[place]])):
            place, at = place + 1, at - size
        vocab_size = self.config.tokenizer.vocab_size
        return wrong_id(self.dataset, int(self.document_index[place]), token, vocab_size)

    def _masks(self, tokens: NDArray[np.int64]) -> MasksAndPositionIds:
        if self._shared_masks is not None:
            return self._shared_masks
        config = self.config
        masks = get_ltor_masks_and_position_ids(
            tokens,
            self._eod_id,
            reset_position_ids=config.reset_position_ids,
            reset_attention_mask=config.reset_attention_mask,
            eod_mask_loss=config.eod_mask_loss,
            create_attention_mask=config.create_attention_mask,
        )
        if not (config.reset_position_ids or config.reset_attention_mask or config.eod_mask_loss):
            for array in masks:
                if array is not None:
                    array.flags.writeable = False
            self._shared_masks = masks
        return masks

    def _identifiers(self) -> dict[str, object]:
        """Everything the indices depend on, in Megatron's order."""
        return {
            "class": type(self).__name__,
            "dataset_path": self.dataset_path,
            "num_samples": self.num_samples,
            "index_split": self.index_split.name,
            "random_seed": self.config.random_seed,
            "sequence_length": self.config.sequence_length,
            "split": self.config.effective_split,
            "split_matrix": self.config.split_matrix,
            "tokenizer": self.config.tokenizer.unique_identifiers,
        }

    def _load_or_build(self) -> GPTIndices:
        directory = self._cache_directory()
        if directory is None:
            return self._build()
        kind = f"{type(self).__name__}-{self.index_split.name}"
        cache = IndexCache(
            directory,
            kind,
            self.unique_description,
            _INDEX_NAMES,
            getattr(self.dataset, "state", {"sequences": len(self.dataset.sequence_lengths)}),
            self._are_mine,
        )
        found = cache.load()
        if found is not None:
            return GPTIndices(*found)
        indices = self._build()
        cache.save(indices)
        return indices

    def _are_mine(self, arrays: Sequence[NDArray]) -> bool:
        return are_indices_of(
            GPTIndices(*arrays),
            self.dataset.sequence_lengths,
            self.indices,
            self.config.sequence_length,
        )

    def _cache_directory(self) -> str | None:
        if self.config.path_to_cache is not None or self.dataset_path is None:
            return self.config.path_to_cache
        name = f"{type(self).__name__}_indices"
        if is_remote(self.dataset_path):
            assert self.config.object_storage_cache_path is not None, "its index lies there"
            return os.path.join(self.config.object_storage_cache_path, name)
        return os.path.join(self.dataset_path, "cache", name)

    def _build(self) -> GPTIndices:
        if not self.dataset.sequence_lengths[self.indices].any():
            raise ValueError(
                f"the {self.index_split.name} split of {self.dataset_path} has no token in its "
                f"{len(self.indices)} documents; give it a larger share with --split or more data"
            )
        is_partial_dropped = (
            self.index_split is not Split.valid or self.config.drop_last_partial_validation_sequence
        )
        indices = build_gpt_indices(
            self.dataset.sequence_lengths,
            self.indices,
            self.num_samples,
            sequence_length=self.config.sequence_length,
            random_seed=self.config.random_seed,
            extra_token=self._extra,
            drop_last_partial=is_partial_dropped,
        )
        logger.info(
            "built the %s index of %s: %d samples, %d document visits",
            self.index_split.name,
            self.dataset_path or "made-up data",
            len(indices.shuffle_index),
            len(indices.document_index),
        )
        return indices


class MockGPTLowLevelDataset:
    """100000 made-up documents of 1 to 4095 tokens: 1, 2, 3, ... and the end-of-document token.

    Args:
        tokenizer: its vocabulary size, at which the counting starts again, and its last token.
    """

    seed = 0
    size = 100_000
    max_sequence_length = 4096

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._vocab_size = tokenizer.vocab_size
        self._eod = tokenizer.eod
        self.sequence_lengths: NDArray[np.int32] = np.random.default_rng(self.seed).integers(
            low=1, high=self.max_sequence_length, size=self.size, dtype=np.int32
        )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, idx: int | np.integer) -> NDArray[np.int64]:
        tokens = np.arange(1, int(self.sequence_lengths[idx]) + 1, dtype=np.int64)
        tokens %= self._vocab_size
        tokens[-1] = self._eod
        return tokens

    def get(
        self, idx: int | np.integer, offset: int = 0, length: int | None = None
    ) -> NDArray[np.int64]:
        """Tokens ``offset`` to ``offset + length``; to the end without a length."""
        return self[idx][offset : None if length is None else offset + length]


class MockGPTDataset(GPTDataset):
    """Samples of made-up data; nothing is read, and nothing cached without ``path_to_cache``."""
