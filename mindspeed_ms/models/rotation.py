# SPDX-License-Identifier: Apache-2.0
"""Angles of rotary positions, stretched to sequences longer than those of the first training.

Legend: d rotated channels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.config.rope_scaling_config import RopeScalingConfig

Frequencies = NDArray[np.float32]
"""Radians per token of every pair of channels, [d/2]."""


def frequencies(
    stretching: RopeScalingConfig, base: float, channels: int, length: int, longest: int
) -> Frequencies:
    """Angular frequencies base^(-2i/d), stretched.

    Args:
        stretching: how.
        base: of the frequencies.
        channels: d.
        length: tokens of the sequence.
        longest: tokens per sequence that the model was made for.

    Source: the rope_type of the same name in ``transformers`` (behaviour).

    Raises:
        ValueError: longrope has another number of factors than there are pairs.
    """
    kind, factor = stretching.rope_type, np.float32(stretching.factor)
    if kind == "dynamic":
        grown = stretching.factor * max(length, longest) / longest - (stretching.factor - 1.0)
        base = base * grown ** (channels / (channels - 2))
    exponents = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
    plain = np.float32(1.0) / np.float32(base) ** exponents
    original = stretching.original_max_position_embeddings or longest
    if kind == "linear":
        return plain / factor
    if kind == "llama3":
        turns = np.float32(original) * plain / np.float32(2 * np.pi)
        low, high = stretching.low_freq_factor, stretching.high_freq_factor
        kept = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1)
        return (plain * (kept + (1 - kept) / factor)).astype(np.float32)
    if kind == "yarn":
        slowed = _slowed(stretching, base, channels, original)
        return plain / factor * slowed + plain * (np.float32(1.0) - slowed)
    if kind == "longrope":
        is_long = length > original
        divisors = stretching.long_factor if is_long else stretching.short_factor
        assert divisors is not None, "longrope has both lists"
        if len(divisors) != channels // 2:
            raise ValueError(
                f"rope_scaling has {len(divisors)} factors for {channels // 2} pairs of channels; "
                "give one for each"
            )
        return plain / np.array(divisors, np.float32)
    return plain


def _slowed(
    stretching: RopeScalingConfig, base: float, channels: int, original: int
) -> Frequencies:
    """Share of each pair that is stretched: 0 for those that turn often, 1 for slow ones."""

    def pair_turning(turns: float) -> float:
        wave = original / (turns * 2.0 * math.pi)
        return channels * math.log(wave) / (2.0 * math.log(base))

    low, high = pair_turning(stretching.beta_fast), pair_turning(stretching.beta_slow)
    if stretching.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, channels - 1)
    width = (high - low) if high != low else 1e-3
    pairs = np.arange(channels // 2, dtype=np.float32)
    return np.clip((pairs - np.float32(low)) / np.float32(width), 0.0, 1.0).astype(np.float32)


def growth(stretching: RopeScalingConfig, longest: int) -> float:
    """Factor of rotated queries, and of keys."""
    kind, factor = stretching.rope_type, stretching.factor
    if kind not in ("yarn", "longrope"):
        return 1.0
    if stretching.attention_factor is not None:
        return stretching.attention_factor
    if factor <= 1.0:
        return 1.0
    if kind == "longrope":
        original = stretching.original_max_position_embeddings or longest
        return math.sqrt(1.0 + math.log(factor) / math.log(original))
    weights = stretching.mscale, stretching.mscale_all_dim
    if all(weights):
        return yarn_growth(factor, weights[0]) / yarn_growth(factor, weights[1])
    return yarn_growth(factor, 1.0)


def yarn_growth(factor: float, weight: float) -> float:
    """Growth of attention scores (or of their factors) when sequences get ``factor`` times longer.

    Source: Peng et al., 2023 (YaRN), equation 22, with the weight of DeepSeek-V2.
    """
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0
