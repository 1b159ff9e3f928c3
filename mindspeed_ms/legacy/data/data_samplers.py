# SPDX-License-Identifier: Apache-2.0
"""The guide's path of the loader of a run's datasets."""

from mindspeed_ms.data.samplers import (
    MegatronPretrainingRandomSampler,
    MegatronPretrainingSampler,
)
from mindspeed_ms.engine.datasets import build_pretraining_data_loader

__all__ = [
    "MegatronPretrainingRandomSampler",
    "MegatronPretrainingSampler",
    "build_pretraining_data_loader",
]
