# SPDX-License-Identifier: Apache-2.0
"""Megatron's path of ``mindspeed_ms.data.indexed_dataset``."""

from mindspeed_ms.data.indexed_dataset import (
    DType,
    IndexedDataset,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)

__all__ = [
    "DType",
    "IndexedDataset",
    "IndexedDatasetBuilder",
    "get_bin_path",
    "get_idx_path",
]
