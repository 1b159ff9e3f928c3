# SPDX-License-Identifier: Apache-2.0
"""Megatron's path of ``mindspeed_ms.data.blended_dataset``."""

from mindspeed_ms.data.blended_dataset import (
    BlendedDataset,
)

__all__ = [
    "BlendedDataset",
]
