# SPDX-License-Identifier: Apache-2.0
"""Megatron's path of ``mindspeed_ms.data.blended_megatron_dataset_builder``."""

from mindspeed_ms.data.blended_megatron_dataset_builder import (
    BlendedMegatronDatasetBuilder,
)

__all__ = [
    "BlendedMegatronDatasetBuilder",
]
