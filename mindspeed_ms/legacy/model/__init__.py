# SPDX-License-Identifier: Apache-2.0
"""GPT models under the import paths of the user guide."""

import mindspeed_ms.backend  # noqa: F401 - quiets MindSpore, which must not be loaded before
from mindspeed_ms import old_names
from mindspeed_ms.legacy.model.attention import CoreAttention, ParallelAttention
from mindspeed_ms.legacy.model.enums import AttnMaskType, AttnType, LayerType, ModelType
from mindspeed_ms.legacy.model.eos_mask import EosMask
from mindspeed_ms.legacy.model.gpt_model import GPTModel
from mindspeed_ms.legacy.model.language_model import (
    Embedding,
    TransformerLanguageModel,
    get_language_model,
)
from mindspeed_ms.legacy.model.mlp import ParallelMLP
from mindspeed_ms.legacy.model.module import Module
from mindspeed_ms.legacy.model.norm import LayerNorm, RMSNorm, get_norm
from mindspeed_ms.legacy.model.rotary_pos_embedding import RotaryEmbedding
from mindspeed_ms.legacy.model.transformer import (
    ParallelLMLogits,
    ParallelTransformer,
    ParallelTransformerLayer,
)

__all__ = [
    "AttnMaskType",
    "AttnType",
    "CoreAttention",
    "Embedding",
    "EosMask",
    "GPTModel",
    "LayerNorm",
    "LayerType",
    "ModelType",
    "Module",
    "ParallelAttention",
    "ParallelLMLogits",
    "ParallelMLP",
    "ParallelTransformer",
    "ParallelTransformerLayer",
    "RMSNorm",
    "RotaryEmbedding",
    "TransformerLanguageModel",
    "get_language_model",
    "get_norm",
]

__getattr__ = old_names.of(__name__)
