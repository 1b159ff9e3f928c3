# SPDX-License-Identifier: Apache-2.0
"""Megatron's path of ``mindspeed_ms.data.gpt_dataset_config``."""

from mindspeed_ms.data.gpt_dataset_config import (
    GPTDatasetConfig,
    GPTFIMDatasetConfig,
    TokenizerInfo,
    TokenizerLike,
)

__all__ = [
    "GPTDatasetConfig",
    "GPTFIMDatasetConfig",
    "TokenizerInfo",
    "TokenizerLike",
]
