# SPDX-License-Identifier: Apache-2.0
"""Megatron's path of ``mindspeed_ms.data.gpt_dataset``."""

from mindspeed_ms.data.gpt_dataset import (
    GPTDataset,
    GPTDatasetConfig,
    GPTFIMDatasetConfig,
    MockGPTDataset,
    MockGPTLowLevelDataset,
    TokenizerInfo,
)

__all__ = [
    "GPTDataset",
    "GPTDatasetConfig",
    "GPTFIMDatasetConfig",
    "MockGPTDataset",
    "MockGPTLowLevelDataset",
    "TokenizerInfo",
]
