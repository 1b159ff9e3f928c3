# SPDX-License-Identifier: Apache-2.0
"""The train, valid and test datasets of one run.

Source: Megatron-LM core 0.12 ``data/blended_megatron_dataset_builder.py`` (behaviour).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any, Protocol

import numpy as np

from mindspeed_ms.data.blended_dataset import BlendedDataset
from mindspeed_ms.data.gpt_dataset import GPTDataset, MockGPTDataset
from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig
from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.instruction_dataset import InstructionFiles
from mindspeed_ms.data.token_check import check_token_ids
from mindspeed_ms.data.utils import (
    Blend,
    Split,
    SplitRange,
    normalize,
    part_of_corpus,
    split_bounds,
)

AnyGPTDataset = GPTDataset | BlendedDataset
Sizes = tuple[int | None, int | None, int | None]
TopLevelDataset = AnyGPTDataset | list[AnyGPTDataset]
"""One dataset; a list of several validation sets."""

ThreeDatasets = tuple[TopLevelDataset | None, TopLevelDataset | None, TopLevelDataset | None]
_SplitMatrix = Sequence[SplitRange | None]


class DatasetClass(Protocol):
    """A class of datasets the builder can make, like ``GPTDataset``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """(low-level dataset, path, indices, number of samples, split, config) -> dataset."""
        ...

    def numel_low_level_dataset(self, low_level_dataset: Any) -> int:
        """Units that ``split`` divides."""
        ...

    def build_low_level_dataset(self, dataset_path: Any, config: Any) -> Any:
        """Open what is on disk."""
        ...


def build_train_valid_test_datasets(
    config: GPTDatasetConfig,
    num_samples: Sizes,
    *,
    cls: DatasetClass | None = None,
    is_checking: bool | None = None,
) -> ThreeDatasets:
    """Build the three datasets in this process; one that its split leaves empty is None.

    Args:
        config: options.
        num_samples: samples needed of each split; None for one pass over its data.
        cls: class of the datasets; by default ``GPTDataset``, without a data path
            ``MockGPTDataset``.
        is_checking: look for token ids beyond the vocabulary; by default as the config says.

    Raises:
        FileNotFoundError: a token file is missing.
        ValueError: malformed or empty data, ids beyond the vocabulary, or a cache that cannot be
            written.
    """
    check = config.check_token_ids if is_checking is None else is_checking
    return _Builder(config, num_samples, cls, is_checking=check).build()


class _Builder:
    """Builds the datasets of one config."""

    def __init__(
        self,
        config: GPTDatasetConfig,
        sizes: Sizes,
        cls: DatasetClass | None,
        *,
        is_checking: bool,
    ) -> None:
        self._config = config
        self._sizes = sizes
        self._cls = cls
        self._is_checking = is_checking

    def build(self) -> ThreeDatasets:
        """The three datasets."""
        config = self._config
        if config.blend_per_split is not None:
            per_split = [
                self._one_split(blend, split)
                for blend, split in zip(config.blend_per_split, Split, strict=True)
            ]
            return per_split[0], per_split[1], per_split[2]
        matrix = config.split_matrix
        assert matrix is not None, "only a config with one data path per split has no split matrix"
        if config.blend is None:
            train, valid, test = self._corpus(None, matrix, self._sizes)
        elif len(config.blend[0]) == 1 and config.blend[1] is None:
            train, valid, test = self._corpus(config.blend[0][0], matrix, self._sizes)
        else:
            return self._blend(config.blend, matrix, self._sizes)
        return train, valid, test

    def _one_split(self, blend: Blend | None, split: Split) -> TopLevelDataset | None:
        """Dataset of a split that has its own data paths: all of their content."""
        if blend is None:
            return None
        matrix: list[SplitRange | None] = [None] * len(Split)
        matrix[split.value] = (0.0, 1.0)
        if len(blend[0]) == 1:
            return self._corpus(blend[0][0], matrix, self._sizes)[split.value]
        if split is Split.valid and self._config.multiple_validation_sets:
            parts = [self._corpus(prefix, matrix, self._sizes)[split.value] for prefix in blend[0]]
            return list(_all_present(parts, blend[0], split))
        return self._blend(blend, matrix, self._sizes)[split.value]

    def _blend(self, blend: Blend, matrix: _SplitMatrix, sizes: Sizes) -> ThreeDatasets:
        prefixes, raw_weights = blend
        weights = None if raw_weights is None else normalize(raw_weights)
        surplus = self._config.mid_level_dataset_surplus
        # parts[corpus][split]
        part_sizes = [
            self._part_sizes(weights, number, matrix, sizes, surplus)
            for number in range(len(prefixes))
        ]
        with ThreadPoolExecutor(self._config.num_dataset_builder_threads) as pool:
            corpora = pool.map(self._corpus, prefixes, repeat(matrix), part_sizes)
            parts = list(corpora)
        blended: list[AnyGPTDataset | None] = []
        for split in Split:
            candidates = [part[split.value] for part in parts]
            size = sizes[split.value]
            if matrix[split.value] is None or all(part is None for part in candidates):
                blended.append(None)
                continue
            chosen = _all_present(candidates, prefixes, split)
            if weights is None:
                lengths = [len(part) for part in chosen]
                total = None if size is None else min(size, sum(lengths))
                blended.append(BlendedDataset(chosen, lengths, total, self._config))
            else:
                assert size is not None, "_part_sizes refuses weights without a size"
                total = sum(math.ceil(size * weight) for weight in weights)
                blended.append(BlendedDataset(chosen, weights, total, self._config))
        return blended[0], blended[1], blended[2]

    @staticmethod
    def _part_sizes(
        weights: list[float] | None,
        number: int,
        matrix: _SplitMatrix,
        sizes: Sizes,
        surplus: float,
    ) -> Sizes:
        """Samples to prepare of one corpus of a blend, a little above its target."""
        if weights is None:
            return None, None, None
        wanted: list[int | None] = []
        for split, size in zip(Split, sizes, strict=True):
            if matrix[split.value] is None:
                wanted.append(None)
            elif size is None:
                raise ValueError(
                    f"the {split.name} blend has weights but no number of samples; remove the "
                    "weights to read each corpus once, or set the number of iterations"
                )
            else:
                wanted.append(math.ceil(math.ceil(size * weights[number]) * (1 + surplus)))
        return wanted[0], wanted[1], wanted[2]

    def _corpus(
        self, prefix: str | None, matrix: _SplitMatrix, sizes: Sizes
    ) -> list[GPTDataset | None]:
        """Datasets of the splits of one corpus; made-up data without a prefix."""
        kind = self._cls
        if kind is None:
            kind = MockGPTDataset if prefix is None else GPTDataset
        path, part = (prefix, None) if prefix is None else part_of_corpus(prefix)
        if part is not None:
            matrix = [None if span is None else part for span in matrix]
        store = kind.build_low_level_dataset(path, self._config)
        tokens = store.ids if isinstance(store, InstructionFiles) else store
        if self._is_checking and isinstance(tokens, IndexedDataset):
            check_token_ids(tokens, self._config.tokenizer.vocab_size)
        num_units = kind.numel_low_level_dataset(store)
        self._check_number_of_sequences(prefix, num_units)
        datasets: list[GPTDataset | None] = []
        for split, span, size in zip(Split, matrix, sizes, strict=True):
            first, last = (0, 0) if span is None else split_bounds(span, num_units)
            if span is None or (first >= last and not size):
                datasets.append(None)
                continue
            if first >= last:
                raise ValueError(
                    f"the {split.name} split of {prefix} is empty: {num_units} documents under "
                    f"split {self._config.effective_split!r}; give it a larger share, or set "
                    "--eval-iters 0 if it is not wanted"
                )
            units = np.arange(first, last, dtype=np.int32)
            datasets.append(kind(store, prefix, units, size, split, self._config))
        return datasets

    def _check_number_of_sequences(self, prefix: str | None, found: int) -> None:
        expected = (self._config.sequences_per_dataset or {}).get(prefix or "", found)
        if expected != found:
            raise ValueError(
                f"{prefix} has {found} sequences, the list of sequences per dataset says "
                f"{expected}; correct the list or the path"
            )


def _all_present(
    candidates: Sequence[GPTDataset | None], prefixes: Sequence[str], split: Split
) -> list[GPTDataset]:
    present = [dataset for dataset in candidates if dataset is not None]
    if len(present) < len(candidates):
        missing = [
            prefix for prefix, part in zip(prefixes, candidates, strict=True) if part is None
        ]
        raise ValueError(
            f"{', '.join(missing)} has no document in the {split.name} split while other parts of "
            "the blend have; give the split a larger share or remove the corpus"
        )
    return present
