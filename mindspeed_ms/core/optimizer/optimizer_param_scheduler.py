# SPDX-License-Identifier: Apache-2.0
"""Learning rate and weight decay as functions of the samples consumed.

Everything is counted in samples, so that a growing global batch keeps the shape of the schedule.
The scheduler only returns numbers; the optimizer applies them to its parameter groups with their
``lr_mult`` and ``wd_mult``.

Source: Megatron-LM core 0.12 ``OptimizerParamScheduler`` (behaviour).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mindspeed_ms.config.optimizer_config import (
    LrDecayStyle,
    OptimizerConfig,
    WeightDecayStyle,
    WsdDecayStyle,
)
from mindspeed_ms.config.training_config import TrainingConfig

logger = logging.getLogger(__name__)


class ParamValues(NamedTuple):
    """What the optimizer uses in the next step."""

    learning_rate: float
    """Learning rate of ordinary parameters."""

    weight_decay: float
    """Weight decay of parameters that have any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamSchedule:
    """The shape of both schedules, lengths in samples.

    Raises:
        ValueError: bounds in the wrong order or lengths that do not fit.

    """

    max_lr: float
    """Learning rate after warm-up."""

    min_lr: float = 0.0
    """Learning rate from the end of decay on."""

    init_lr: float = 0.0
    """Learning rate at the start of warm-up."""

    lr_warmup_steps: float = 0
    """Samples of linear warm-up."""

    lr_decay_steps: int
    """Samples until min_lr, warm-up included."""

    lr_decay_style: LrDecayStyle = "constant"
    """Shape after warm-up."""

    wsd_decay_steps: int | None = None
    """Samples of the last part of WSD."""

    lr_wsd_decay_style: WsdDecayStyle = "exponential"
    """Shape of the last part of WSD."""

    start_wd: float = 0.0
    """Weight decay at the start."""

    end_wd: float = 0.0
    """Weight decay at the end."""

    wd_incr_steps: int = 0
    """Samples from start_wd to end_wd."""

    wd_incr_style: WeightDecayStyle = "constant"
    """Shape between them."""

    def __post_init__(self) -> None:
        """Check bounds and lengths."""
        if not 0.0 <= self.min_lr <= self.max_lr:
            raise ValueError(
                f"min_lr ({self.min_lr}) must lie between 0 and the learning rate "
                f"({self.max_lr}); change one of them"
            )
        if self.init_lr > self.max_lr:
            raise ValueError(
                f"lr_warmup_init ({self.init_lr}) must not exceed the learning rate "
                f"({self.max_lr}); lower it"
            )
        if self.lr_decay_steps < 1:
            raise ValueError(
                f"the learning rate decays over {self.lr_decay_steps} samples, but needs at least "
                "1; "
                f"give the length of training or lr_decay_iters"
            )
        if not 0 <= self.lr_warmup_steps < self.lr_decay_steps:
            raise ValueError(
                f"warm-up ({self.lr_warmup_steps} samples) must be shorter than the decay "
                f"({self.lr_decay_steps} samples, "
                f"warm-up included); shorten warm-up or lengthen training"
            )
        if not 0.0 <= self.start_wd <= self.end_wd:
            raise ValueError(
                f"weight decay must go from a start of at least 0 upwards, given {self.start_wd} "
                f"to {self.end_wd}; "
                f"exchange them"
            )
        if self.lr_decay_style == "WSD" and self.wsd_decay_steps is None:
            raise ValueError(
                "WSD needs the length of its last part; give lr_wsd_decay_iters or "
                "lr_wsd_decay_samples"
            )
        if self.wd_incr_style == "constant" and self.start_wd != self.end_wd:
            raise ValueError(
                f"weight decay goes from {self.start_wd} to {self.end_wd}, but its style is "
                "constant; "
                f"choose linear or cosine"
            )

    def lr_at(
        self, num_steps: int, max_lr: float | None = None, min_lr: float | None = None
    ) -> float:
        """Return the learning rate after ``num_steps`` samples.

        Args:
            num_steps: samples consumed.
            max_lr: upper bound of a parameter group with its own; None: the schedule's.
            min_lr: lower bound of such a group; None: the schedule's.

        """
        top = self.max_lr if max_lr is None else max_lr
        bottom = self.min_lr if min_lr is None else min_lr
        warmup, decay = self.lr_warmup_steps, self.lr_decay_steps
        if warmup > 0 and num_steps <= warmup:
            return self.init_lr + (top - self.init_lr) * float(num_steps) / float(warmup)
        if self.lr_decay_style == "constant":
            return top
        if num_steps > decay:
            return bottom
        if self.lr_decay_style == "inverse-square-root":
            return max(bottom, top * max(warmup, 1) ** 0.5 / max(num_steps, 1) ** 0.5)
        return bottom + self._decay_share(num_steps) * (top - bottom)

    def _decay_share(self, num_steps: int) -> float:
        """Return how much of max_lr - min_lr is left, 1 to 0."""
        if self.lr_decay_style == "WSD":
            return self._wsd_share(num_steps)
        ratio = float(num_steps - self.lr_warmup_steps) / float(
            self.lr_decay_steps - self.lr_warmup_steps
        )
        if self.lr_decay_style == "linear":
            return 1.0 - ratio
        return 0.5 * (math.cos(math.pi * ratio) + 1.0)

    def _wsd_share(self, num_steps: int) -> float:
        length = self.wsd_decay_steps or 0  # 0: the last part is another run's
        start = self.lr_decay_steps - length
        if num_steps <= start:
            return 1.0
        ratio = float(num_steps - start) / float(length)
        return {
            "linear": 1.0 - ratio,
            "cosine": 0.5 * (math.cos(math.pi * ratio) + 1.0),
            "exponential": 2.0 * math.pow(0.5, ratio) - 1.0,
            "minus_sqrt": 1.0 - math.sqrt(ratio),
        }[self.lr_wsd_decay_style]

    def wd_at(self, num_steps: int) -> float:
        """Return the weight decay after ``num_steps`` samples."""
        if self.wd_incr_style == "constant" or num_steps > self.wd_incr_steps:
            return self.end_wd
        ratio = float(num_steps) / float(self.wd_incr_steps) if self.wd_incr_steps else 1.0
        share = (
            ratio if self.wd_incr_style == "linear" else 0.5 * (math.cos(math.pi * (1 - ratio)) + 1)
        )
        return self.start_wd + share * (self.end_wd - self.start_wd)


def make_param_schedule(
    training: TrainingConfig, optimizer: OptimizerConfig, global_batch_size: int
) -> ParamSchedule:
    """Return the schedule of a configuration, iterations turned into samples of full batches.

    Raises:
        ValueError: a decaying rate without a length, or lengths that do not fit.

    """
    if training.train_samples is not None:
        total = training.train_samples
        decay = optimizer.lr_decay_samples or total
        warmup: float = optimizer.lr_warmup_samples
        wsd = optimizer.lr_wsd_decay_samples
    else:
        total = training.training_iters * global_batch_size
        iters = optimizer.lr_decay_iters or training.training_iters
        decay = iters * global_batch_size
        warmup = optimizer.lr_warmup_iters * global_batch_size
        wsd_iters = optimizer.lr_wsd_decay_iters
        wsd = None if wsd_iters is None else wsd_iters * global_batch_size
    if optimizer.lr_decay_style == "constant" and decay == 0:
        decay = int(warmup) + 1  # no decay ever happens; any length after the warm-up will do
    if optimizer.lr_warmup_fraction is not None:
        warmup = optimizer.lr_warmup_fraction * decay
    if optimizer.start_weight_decay is None or optimizer.end_weight_decay is None:
        raise AssertionError("weight decay ends are filled when the section is built")
    return ParamSchedule(
        max_lr=optimizer.learning_rate,
        min_lr=optimizer.min_lr,
        init_lr=optimizer.lr_warmup_init,
        lr_warmup_steps=warmup,
        lr_decay_steps=decay,
        lr_decay_style=optimizer.lr_decay_style,
        wsd_decay_steps=wsd,
        lr_wsd_decay_style=optimizer.lr_wsd_decay_style,
        start_wd=optimizer.start_weight_decay,
        end_wd=optimizer.end_weight_decay,
        wd_incr_steps=total,
        wd_incr_style=optimizer.weight_decay_incr_style,
    )


_STATE_KEYS = {
    "max_lr": ("max_lr", "start_lr"),
    "lr_warmup_steps": ("lr_warmup_steps", "warmup_steps", "warmup_iter"),
    "lr_decay_steps": ("lr_decay_steps", "decay_steps", "end_iter"),
    "lr_decay_style": ("lr_decay_style", "decay_style"),
    "min_lr": ("min_lr",),
    "start_wd": ("start_wd",),
    "end_wd": ("end_wd",),
    "wd_incr_style": ("wd_incr_style",),
    "wd_incr_steps": ("wd_incr_steps",),
}
"""Field of ParamSchedule -> its name in checkpoints, today's first."""


class OptimizerParamScheduler:
    """Position in a :class:`ParamSchedule`.

    Args:
        schedule: the shape.
        use_checkpoint_opt_param_scheduler: on load take the stored shape.
        override_opt_param_scheduler: on load keep this shape and take only the position.

    Raises:
        ValueError: both switches are set.

    """

    def __init__(
        self,
        schedule: ParamSchedule,
        use_checkpoint_opt_param_scheduler: bool = False,
        override_opt_param_scheduler: bool = False,
    ) -> None:
        if use_checkpoint_opt_param_scheduler and override_opt_param_scheduler:
            raise ValueError(
                "use_checkpoint_opt_param_scheduler and override_opt_param_scheduler exclude each "
                "other; keep one"
            )
        self.schedule = schedule
        self.use_checkpoint_opt_param_scheduler = use_checkpoint_opt_param_scheduler
        self.override_opt_param_scheduler = override_opt_param_scheduler
        self.num_steps = 0

    @classmethod
    def from_config(
        cls, training: TrainingConfig, optimizer: OptimizerConfig, global_batch_size: int
    ) -> OptimizerParamScheduler:
        """Return the scheduler of a configuration, at its start."""
        return cls(
            make_param_schedule(training, optimizer, global_batch_size),
            optimizer.use_checkpoint_opt_param_scheduler,
            optimizer.override_opt_param_scheduler,
        )

    def get_lr(
        self, num_steps: int | None = None, max_lr: float | None = None, min_lr: float | None = None
    ) -> float:
        """Return the learning rate after ``num_steps`` samples, None meaning here.

        See :meth:`ParamSchedule.lr_at`.
        """
        return self.schedule.lr_at(
            self.num_steps if num_steps is None else num_steps, max_lr, min_lr
        )

    def get_wd(self, num_steps: int | None = None) -> float:
        """Return the weight decay after ``num_steps`` samples; None: here."""
        return self.schedule.wd_at(self.num_steps if num_steps is None else num_steps)

    def values(self) -> ParamValues:
        """Return learning rate and weight decay of the step that starts here."""
        return ParamValues(self.get_lr(), self.get_wd())

    def step(self, increment: int) -> ParamValues:
        """Move on by the samples of a successful step; return the values of the next one."""
        self.num_steps += increment
        return self.values()

    def state_dict(self) -> dict[str, Any]:
        """Return shape and position under Megatron's names."""
        state = {name: getattr(self.schedule, name) for name in _STATE_KEYS}
        return {**state, "num_steps": self.num_steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> ParamValues:
        """Continue from a stored position; return the values of the next step.

        Raises:
            ValueError: the position is missing, or the stored shape differs and neither switch says
                which one counts.

        """
        stored = {
            name: next(state_dict[key] for key in keys if key in state_dict)
            for name, keys in _STATE_KEYS.items()
            if any(key in state_dict for key in keys)
        }
        num_steps = state_dict.get("num_steps", state_dict.get("num_iters"))
        if num_steps is None:
            raise ValueError(
                "the stored scheduler state has no num_steps; load the checkpoint without its "
                "optimizer state"
            )
        if self.override_opt_param_scheduler:
            logger.info("keeping the configured schedule instead of the checkpoint's")
        else:
            self._take(stored)
        self.num_steps = int(num_steps)
        return self.values()

    def _take(self, stored: Mapping[str, Any]) -> None:
        for name, value in stored.items():
            own = getattr(self.schedule, name)
            if not self.use_checkpoint_opt_param_scheduler and own != value:
                raise ValueError(
                    f"{name} is {own}, but the checkpoint was written with {value}; they must "
                    "agree, "
                    f"or set use_checkpoint_opt_param_scheduler or override_opt_param_scheduler"
                )
        self.schedule = replace(self.schedule, **stored)
