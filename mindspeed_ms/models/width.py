# SPDX-License-Identifier: Apache-2.0
"""Maximal update parametrisation: what a model's width changes, so that rates carry over.

Source: Yang et al., 2022; Megatron-LM ``--use-mup`` (which factors, and where).
"""

from __future__ import annotations

import math

from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.models.parameter import Init


def width_mult(config: TransformerConfig) -> float:
    """Hidden size over that of the base model; 1 without ``use_mup``."""
    base = config.mup_base_hidden_size
    return config.hidden_size / base if config.use_mup and base else 1.0


def embedding_factor(config: TransformerConfig) -> float:
    """Factor of the embedding's output."""
    return config.embedding_multiplier * (config.mup_embedding_mult if config.use_mup else 1.0)


def logits_divisor(config: TransformerConfig) -> float:
    """Divisor of the logits; a ``mup_output_mult`` of 1 becomes 1 / width."""
    if not config.use_mup:
        return config.logits_scaling
    mult = config.mup_output_mult
    return config.logits_scaling * (width_mult(config) if mult == 1.0 else 1.0 / mult)


def attention_scale(config: TransformerConfig) -> float:
    """Factor of attention scores: sqrt(base head dim) / head dim ** power."""
    base = config.mup_base_head_dim or 1.0
    return math.sqrt(base) / float(config.kv_channels or 1) ** config.mup_attn_scale_power


def hidden_init(config: TransformerConfig, divisor: float = 1.0) -> Init:
    """Initial values of a matrix between hidden layers.

    Args:
        config: model configuration.
        divisor: of the standard deviation; Xavier's distribution has none.
    """
    if config.init_method_xavier_uniform:
        return Init(is_xavier=True)
    return Init(config.init_method_std / math.sqrt(width_mult(config)) / divisor)


def table_init(config: TransformerConfig, is_drawn_twice: bool = False) -> Init:
    """Initial values of embeddings, whose standard deviation no width changes."""
    std = config.embedding_init_method_std or config.init_method_std
    if config.init_method_xavier_uniform and std == config.init_method_std:
        return Init(is_xavier=True, is_drawn_twice=is_drawn_twice)
    return Init(std, is_drawn_twice=is_drawn_twice)
