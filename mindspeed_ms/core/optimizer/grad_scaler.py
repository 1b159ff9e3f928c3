# SPDX-License-Identifier: Apache-2.0
"""Loss scales for fp16: gradients that would vanish in 16 bits are computed on a scaled loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mindspeed_ms.config import TrainingConfig

DEFAULT_INITIAL_SCALE = 2.0**32
DEFAULT_WINDOW = 1000


class GradScaler(Protocol):
    """Factor on the loss, and how it follows overflows."""

    scale: float

    def update(self, found_inf: bool) -> None:
        """Note whether the gradients of a step overflowed, on any rank."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what ``state_dict`` returned."""


class ConstantGradScaler:
    """The same scale for the whole run; a step that overflows is skipped all the same."""

    def __init__(self, scale: float) -> None:
        if scale <= 0.0:
            raise ValueError(f"the loss scale is {scale}; it must be positive: use a power of 2")
        self.scale = scale

    def update(self, found_inf: bool) -> None:
        """Change nothing."""

    def state_dict(self) -> dict[str, float]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Nothing to restore."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalePolicy:
    """How a dynamic loss scale moves.

    Raises:
        ValueError: a scale or factor that would make it shrink or grow without bound.
    """

    initial_scale: float = DEFAULT_INITIAL_SCALE
    min_scale: float = 1.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = DEFAULT_WINDOW
    """Steps without overflow before the scale grows."""
    hysteresis: int = 2
    """Overflows before the scale shrinks; refilled only when it grows."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not 0.0 < self.min_scale <= self.initial_scale:
            raise ValueError(
                f"the loss scale starts at {self.initial_scale} with minimum {self.min_scale}; the "
                "minimum must be positive and not above the start"
            )
        if self.growth_factor <= 1.0 or not 0.0 < self.backoff_factor < 1.0:
            raise ValueError(
                f"the loss scale grows by {self.growth_factor} and shrinks by "
                f"{self.backoff_factor}; use factors above and below 1, such as 2 and 0.5"
            )
        if self.growth_interval < 1 or self.hysteresis < 1:
            raise ValueError(
                f"loss_scale_window is {self.growth_interval} and hysteresis {self.hysteresis}; "
                "both count steps and must be at least 1"
            )


class DynamicGradScaler:
    """Shrinks after overflows, grows after a long time without.

    Source: Megatron-LM ``DynamicGradScaler`` (rules).
    """

    def __init__(self, policy: ScalePolicy) -> None:
        self.policy = policy
        self.scale = policy.initial_scale
        self._growth = 0
        self._hysteresis = policy.hysteresis

    def update(self, found_inf: bool) -> None:
        """Note whether the gradients of a step overflowed, on any rank."""
        policy = self.policy
        if found_inf:
            self._growth = 0
            self._hysteresis -= 1
            if self._hysteresis <= 0:
                self.scale = max(self.scale * policy.backoff_factor, policy.min_scale)
            return
        self._growth += 1
        if self._growth == policy.growth_interval:
            self._growth = 0
            self._hysteresis = policy.hysteresis
            self.scale *= policy.growth_factor

    def state_dict(self) -> dict[str, float]:
        """Scale and both counters, under Megatron's names."""
        return {
            "scale": self.scale,
            "growth_tracker": self._growth,
            "hysteresis_tracker": self._hysteresis,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue where another run stopped."""
        self.scale = float(state["scale"])
        self._growth = int(state["growth_tracker"])
        self._hysteresis = int(state["hysteresis_tracker"])


def get_grad_scaler(config: TrainingConfig) -> GradScaler | None:
    """The scaler a configuration asks for: a given scale, a dynamic one for fp16, or none."""
    if config.loss_scale is not None:
        return ConstantGradScaler(config.loss_scale)
    if not config.fp16:
        return None
    return DynamicGradScaler(
        ScalePolicy(
            initial_scale=config.loss_scale_value or DEFAULT_INITIAL_SCALE,
            min_scale=config.min_loss_scale,
            growth_factor=config.loss_scale_growth_factor or 2.0,
            growth_interval=config.loss_scale_window or DEFAULT_WINDOW,
            hysteresis=config.hysteresis,
        )
    )
