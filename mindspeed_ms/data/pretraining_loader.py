# SPDX-License-Identifier: Apache-2.0
"""Loader of the training, validation and test data.

Source: Megatron-LM core 0.12 ``legacy/data/data_samplers.py`` (behaviour).
"""

from __future__ import annotations

from collections.abc import Iterable

from mindspeed_ms.data.loader import (
    Batch,
    LoaderSettings,
    PretrainingDataLoader,
    SampleDataset,
    make_sampler,
)
from mindspeed_ms.data.samplers import MegatronPretrainingRandomSampler, MegatronPretrainingSampler

__all__ = [
    "MegatronPretrainingRandomSampler",
    "MegatronPretrainingSampler",
    "build_pretraining_data_loader",
]


def build_pretraining_data_loader(
    dataset: SampleDataset | None,
    consumed_samples: int,
    *,
    settings: LoaderSettings,
) -> Iterable[Batch] | None:
    """Loader of a dataset on this rank, starting behind the consumed samples.

    A dataset that is shorter than the run is read again from its beginning.

    Args:
        dataset: numbered samples; None gives None. With ``--dataloader-type external`` it is a
            loader itself and returned as it is.
        consumed_samples: samples all ranks read in earlier runs.
        settings: sizes and rank.

    Raises:
        ValueError: no samples left, sizes that do not fit, or numbered samples in place of a
            loader.
    """
    if dataset is None:
        return None
    if settings.dataloader_type == "external":
        if not isinstance(dataset, Iterable):
            raise ValueError(
                f"--dataloader-type external takes loaders of batches from the datasets provider, "
                f"which gave numbered samples ({type(dataset).__name__}); iterate over batches in "
                "it, or use --dataloader-type single"
            )
        return dataset
    sampler = make_sampler(len(dataset), consumed_samples, settings)
    loader = PretrainingDataLoader(dataset, sampler, settings.num_workers)
    loader.start_at(consumed_samples)
    return loader
