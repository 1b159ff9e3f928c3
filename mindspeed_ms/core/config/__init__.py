# SPDX-License-Identifier: Apache-2.0
"""Configuration dataclasses, one per owner, and the ways to build them."""

import mindspeed_ms.backend  # noqa: F401 - quiets MindSpore, which must not be loaded before
from mindspeed_ms.config import to_yaml
from mindspeed_ms.config.all_config import SECTION_CLASSES, AllConfig
from mindspeed_ms.config.lora_config import LoraConfig
from mindspeed_ms.config.support import unsupported_reason
from mindspeed_ms.config.transformer_config import (
    FlashAttentionConfig,
    default_ffn_hidden_size,
    padded_vocab_size,
)
from mindspeed_ms.core.config.predecessor import (
    DatasetConfig,
    GeneralConfig,
    ModelParallelConfig,
    MoEConfig,
    OptimizerConfig,
    TrainingConfig,
    TransformerConfig,
    init_configs_from_yaml,
)
from mindspeed_ms.training.from_args import init_configs_from_args, no_effect_report
from mindspeed_ms.training.global_args import get_args, set_global_args
from mindspeed_ms.training.yaml_styles.yaml_files import (
    init_configs_from_dict,
    load_sections,
)

__all__ = [
    "SECTION_CLASSES",
    "AllConfig",
    "DatasetConfig",
    "FlashAttentionConfig",
    "GeneralConfig",
    "LoraConfig",
    "ModelParallelConfig",
    "MoEConfig",
    "OptimizerConfig",
    "TrainingConfig",
    "TransformerConfig",
    "default_ffn_hidden_size",
    "get_args",
    "init_configs_from_args",
    "init_configs_from_dict",
    "init_configs_from_yaml",
    "load_sections",
    "no_effect_report",
    "padded_vocab_size",
    "set_global_args",
    "to_yaml",
    "unsupported_reason",
]
