# SPDX-License-Identifier: Apache-2.0
"""Several corpora read in fixed proportion.

Source: Megatron-LM core 0.12 ``data/blended_dataset.py`` and ``helpers.cpp`` (behaviour).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.blending import build_blending_indices, build_exhaustive_blending_indices
from mindspeed_ms.data.gpt_dataset import GPTDataset
from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig
from mindspeed_ms.data.index_cache import IndexCache, describe, description_hash
from mindspeed_ms.data.loader import collate
from mindspeed_ms.data.utils import normalize

logger = logging.getLogger(__name__)

_INDEX_NAMES = ("dataset_index", "dataset_sample_index")
_MAX_DATASETS = 32767


class BlendedDataset:
    """Samples of several datasets, in proportion to their weights.

    Items are those of the chosen dataset and its number as ``dataset_id``.

    Args:
        datasets: datasets of one split.
        weights: one positive weight each; without a size, the number of samples to draw from each.
        size: number of samples, or None to draw exactly ``weights[i]`` from dataset i.
        config: options, of which the cache directory is used.

    Raises:
        ValueError: too many datasets, a weight missing or not positive, or a dataset with fewer
            samples than its share.
    """

    def __init__(
        self,
        datasets: Sequence[GPTDataset],
        weights: Sequence[float],
        size: int | None,
        config: GPTDatasetConfig,
    ) -> None:
        _check_parts(datasets, weights)
        self.datasets = list(datasets)
        self.split = self.datasets[0].index_split
        self.index_split = self.split
        # The caller's weights are normalised already; once more can change the last bit, and
        # Megatron's order of samples includes that bit.
        self.weights = list(weights) if size is None else normalize(weights)
        self.size = size
        self.config = config
        self.unique_identifiers = {
            "class": type(self).__name__,
            "datasets": [dataset.unique_identifiers for dataset in self.datasets],
            "split": self.split.name,
            "weights": self.weights,
            "size": self.size,
        }
        self.unique_description = describe(self.unique_identifiers)
        self.unique_description_hash = description_hash(self.unique_description)
        self.dataset_index, self.dataset_sample_index = self._load_or_build()
        self._check_reach()

    def __len__(self) -> int:
        return len(self.dataset_index)

    def __getitem__(self, idx: int | np.integer) -> dict[str, NDArray]:
        number = int(self.dataset_index[idx])
        item = self.datasets[number][int(self.dataset_sample_index[idx])]
        return {"dataset_id": np.asarray(self.dataset_index[idx]), **item}

    def collate(self, samples: Sequence[Mapping[str, NDArray]]) -> dict[str, NDArray]:
        """Stack samples, as their datasets do."""
        stack = getattr(self.datasets[0], "collate", collate)
        return stack(samples)

    def _load_or_build(self) -> tuple[NDArray, NDArray]:
        if not self.config.path_to_cache:
            return self._build()
        kind = f"{type(self).__name__}-{self.split.name}"
        cache = IndexCache(
            self.config.path_to_cache,
            kind,
            self.unique_description,
            _INDEX_NAMES,
            {"samples": [len(dataset) for dataset in self.datasets]},
            self._are_mine,
        )
        found = cache.load()
        if found is not None:
            return found[0], found[1]
        indices = self._build()
        cache.save(indices)
        return indices

    def _are_mine(self, arrays: Sequence[NDArray]) -> bool:
        """Whether the numbers name samples that there are, as many as there should be."""
        numbers, samples = arrays
        size = sum(self.weights) if self.size is None else self.size
        if numbers.shape != (size,) or samples.shape != (size,):
            return False
        if any(array.dtype.kind not in "iu" for array in arrays):
            return False
        if size and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self.datasets):
            return False
        limits = np.array([len(dataset) for dataset in self.datasets], np.int64)
        return bool(((samples >= 0) & (samples < limits[numbers])).all())

    def _build(self) -> tuple[NDArray, NDArray]:
        if self.size is None:
            return build_exhaustive_blending_indices([int(weight) for weight in self.weights])
        return build_blending_indices(self.weights, self.size)

    def _check_reach(self) -> None:
        used = np.bincount(self.dataset_index, minlength=len(self.datasets))
        for number, dataset in enumerate(self.datasets):
            if used[number] > len(dataset):
                raise ValueError(
                    f"the blend reads {used[number]} samples of {dataset.dataset_path}, which has "
                    f"{len(dataset)}; raise mid_level_dataset_surplus "
                    f"({self.config.mid_level_dataset_surplus})"
                )


def _check_parts(datasets: Sequence[GPTDataset], weights: Sequence[float]) -> None:
    if not datasets or len(datasets) != len(weights) or len(datasets) >= _MAX_DATASETS:
        raise ValueError(
            f"a blend of {len(datasets)} datasets has {len(weights)} weights; it takes 1 to "
            f"{_MAX_DATASETS - 1} datasets with one weight each"
        )
    for dataset, weight in zip(datasets, weights, strict=True):
        if not weight > 0:
            raise ValueError(
                f"{dataset.dataset_path} has weight {weight} in the {dataset.index_split.name} "
                "blend; weights must be positive, and an unweighted dataset must hold at least one "
                "sample: remove it or add data"
            )
