# SPDX-License-Identifier: Apache-2.0
"""How rotary positions are stretched to sequences longer than those of the first training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mindspeed_ms.config.kinds import Count, NonNegative, Positive
from mindspeed_ms.config.section import Section

READ_BY: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    ),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "attention_factor",
        "truncate",
    ),
    "longrope": (
        "factor",
        "original_max_position_embeddings",
        "short_factor",
        "long_factor",
        "attention_factor",
    ),
}
"""Kind of stretching -> fields that it reads."""


@dataclass(frozen=True, kw_only=True)
class RopeScalingConfig(Section):
    """Block ``model_config.rope_scaling``; ``mla_config`` has Megatron's fields for yarn beside."""

    NAME: ClassVar[str] = "model_config.rope_scaling"

    rope_type: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"] = "default"
    """default: not at all. linear: all angles by factor. dynamic: the base grows with a sequence
    beyond max_position_embeddings. llama3: slow channels by factor. yarn: slow channels by factor,
    and larger scores. longrope: every channel by a factor of its own."""

    factor: Positive = 1.0
    """How many times longer sequences are."""

    original_max_position_embeddings: Count | None = None
    """Tokens per sequence of the first training. None: max_position_embeddings."""

    low_freq_factor: Positive = 1.0
    """llama3: channels that turn less often over the original length are stretched in full."""

    high_freq_factor: Positive = 4.0
    """llama3: channels that turn more often are kept."""

    beta_fast: Positive = 32.0
    """yarn: channels that turn more often over the original length are kept."""

    beta_slow: Positive = 1.0
    """yarn: channels that turn less often are stretched in full."""

    mscale: NonNegative = 0.0
    """yarn: growth of the rotated channels with the logarithm of factor. 0: 1, and mscale_all_dim
    is not read."""

    mscale_all_dim: NonNegative = 0.0
    """yarn: divides that growth. 0: growth of 1, and mscale is not read."""

    attention_factor: Positive | None = None
    """yarn, longrope: factor of rotated queries and of keys. None: follows from factor."""

    truncate: bool = True
    """yarn: round the range of the channels in between to whole channels."""

    short_factor: tuple[Positive, ...] | None = None
    """longrope: a divisor for each pair of channels, up to the original length."""

    long_factor: tuple[Positive, ...] | None = None
    """longrope: the same for longer sequences."""

    @property
    def is_on(self) -> bool:
        """Whether positions are stretched."""
        return self.rope_type != "default"

    def values(self) -> tuple[tuple[str, object], ...]:
        """What decides about the angles: the kind, and the fields that it reads."""
        names = ("rope_type", *READ_BY[self.rope_type])
        return tuple((name, getattr(self, name)) for name in names)

    def _check(self) -> None:
        if self.rope_type == "longrope" and not (self.short_factor and self.long_factor):
            raise ValueError(
                "rope_scaling.rope_type longrope needs short_factor and long_factor, a number for "
                "each pair of rotated channels; give both lists"
            )
        if self.rope_type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"rope_scaling.high_freq_factor ({self.high_freq_factor}) must be above "
                f"low_freq_factor ({self.low_freq_factor}); Llama 3.1 has 4 and 1"
            )
