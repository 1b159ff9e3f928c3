# SPDX-License-Identifier: Apache-2.0
"""The datasets of a run, built once per host and read by the ranks that need them.

Source: Megatron-LM core 0.12 ``data/blended_megatron_dataset_builder.py`` (names and
behaviour). Deliberate differences: the first rank of each host builds what its host lacks, so that
hosts without a common disk work; and waiting ranks never sit in one long barrier.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from mindspeed_ms.backend import comm
from mindspeed_ms.data.builder import DatasetClass, ThreeDatasets, build_train_valid_test_datasets
from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig
from mindspeed_ms.data.turns import build_together

logger = logging.getLogger(__name__)


class BlendedMegatronDatasetBuilder:
    """Builds the train, validation and test datasets.

    Args:
        cls: class of the datasets, for example ``GPTDataset``.
        sizes: samples needed of each split; None for one pass over its data.
        is_built_on_rank: whether this rank reads data.
        config: options.

    Raises:
        ValueError: the number of sizes is not three.
    """

    def __init__(
        self,
        cls: DatasetClass,
        sizes: Sequence[int | None],
        is_built_on_rank: Callable[[], bool],
        config: GPTDatasetConfig,
    ) -> None:
        if len(sizes) != 3:
            raise ValueError(
                f"sizes has {len(sizes)} entries; give three, for train, validation and test"
            )
        self.cls = cls
        self.sizes = (sizes[0], sizes[1], sizes[2])
        self.is_built_on_rank = is_built_on_rank
        self.config = config

    def build(self) -> ThreeDatasets:
        """Build the three datasets; all None on a rank that reads no data.

        With several validation sets the second result is a list.

        Raises:
            FileNotFoundError: a token file is missing.
            ValueError: malformed or empty data, ids beyond the vocabulary, or a cache that cannot
                be written.
            RuntimeError: one of these on another rank.

        Parallelism:
            Called by every rank together. First rank 0 builds, then the first rank of each other
            host (which finds rank 0's files where the disk is shared), then the others read.
        """
        logger.info("building train, validation and test datasets of %s samples", self.sizes)
        is_reader = self.is_built_on_rank()
        rank, is_first_of_host = comm.get_rank(), comm.get_local_rank() == 0
        turns = (rank == 0, is_first_of_host and rank != 0, is_reader and not is_first_of_host)
        datasets: ThreeDatasets | None = None
        for is_my_turn in turns:
            built = build_together(self._build if is_my_turn else None)
            datasets = built if is_my_turn else datasets
        if not is_reader or datasets is None:
            return None, None, None
        return datasets

    def _build(self) -> ThreeDatasets:
        # One rank per run reads the token ids; the data is the same everywhere.
        is_checking = self.config.check_token_ids and comm.get_rank() == 0
        return build_train_valid_test_datasets(
            self.config, self.sizes, cls=self.cls, is_checking=is_checking
        )
