# SPDX-License-Identifier: Apache-2.0
"""Configuration dataclasses, one per owner, and the rules between them."""

from mindspeed_ms.config.all_config import SECTION_CLASSES, AllConfig, to_yaml
from mindspeed_ms.config.dataset_config import DatasetConfig
from mindspeed_ms.config.lora_config import LoraConfig
from mindspeed_ms.config.model_parallel_config import ModelParallelConfig
from mindspeed_ms.config.moe_config import MoEConfig
from mindspeed_ms.config.optimizer_config import OptimizerConfig
from mindspeed_ms.config.support import unsupported_reason, without_effect
from mindspeed_ms.config.training_config import TrainingConfig
from mindspeed_ms.config.transformer_config import (
    FlashAttentionConfig,
    TransformerConfig,
    default_ffn_hidden_size,
    padded_vocab_size,
)

__all__ = [
    "SECTION_CLASSES",
    "AllConfig",
    "DatasetConfig",
    "FlashAttentionConfig",
    "LoraConfig",
    "ModelParallelConfig",
    "MoEConfig",
    "OptimizerConfig",
    "TrainingConfig",
    "TransformerConfig",
    "default_ffn_hidden_size",
    "padded_vocab_size",
    "to_yaml",
    "unsupported_reason",
    "without_effect",
]
