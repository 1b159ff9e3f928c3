"""The guide's path of ``mindspeed_ms.data.pretraining_loader``."""

from mindspeed_ms.data.pretraining_loader import (
    MegatronPretrainingRandomSampler,
    MegatronPretrainingSampler,
    build_pretraining_data_loader,
)

__all__ = [
    "MegatronPretrainingRandomSampler",
    "MegatronPretrainingSampler",
    "build_pretraining_data_loader",
]
