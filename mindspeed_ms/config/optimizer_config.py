# SPDX-License-Identifier: Apache-2.0
"""The optimizer and its schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from mindspeed_ms.config.kinds import (
    Count,
    DecayRate,
    Epsilon,
    Natural,
    NonNegative,
    Positive,
    Share,
)
from mindspeed_ms.config.model_parallel_config import ModelParallelConfig
from mindspeed_ms.config.section import Section

_ADAMW_NAMES = frozenset(
    {"AdamWeightDecay", "AdamW", "adamw", "adam", "Adam", "mint.AdamW", "SpeedAdamW", "AdamWZeRO"}
)

LrDecayStyle = Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"]
WsdDecayStyle = Literal["linear", "cosine", "exponential", "minus_sqrt"]
WeightDecayStyle = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """Section ``optimizer_config``, update rule, clipping, learning rate and weight decay."""

    NAME: ClassVar[str] = "optimizer_config"
    LINKS: ClassVar[frozenset[str]] = frozenset({"parallel_config"})
    ALIASES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"optimizer": "optimizer_type", "lr": "learning_rate", "adam_eps": "eps"}
    )

    parallel_config: ModelParallelConfig | None = field(default=None, repr=False, kw_only=False)
    """The run's parallel section."""

    # --- rule
    optimizer_type: Literal[
        "AdamWeightDecay",
        "AdamW",
        "adamw",
        "adam",
        "Adam",
        "mint.AdamW",
        "SpeedAdamW",
        "AdamWZeRO",
        "SGD",
        "sgd",
    ] = "AdamWeightDecay"
    """Update rule.

    All Adam names mean AdamW with decoupled weight decay, as Megatron's ``adam`` does.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""

    eps: Epsilon = 1e-8
    """Adam's addend to the root of the second moment."""

    decoupled_weight_decay: bool = True
    """Shrink weights beside Adam's step (AdamW). False: add the decay to the gradient (Adam with L2
    regularisation).
    """

    sgd_momentum: DecayRate = 0.9
    """Momentum of SGD."""

    clip_grad: NonNegative = 0.0
    """Largest L2 norm of all gradients together; larger ones are scaled down.

    0: no clipping, no norm.
    """

    # --- learning rate
    learning_rate: Positive = 1e-3
    """Largest learning rate."""

    min_lr: NonNegative = 0.0
    """Learning rate at and after the end of decay."""

    lr_decay_style: LrDecayStyle = "constant"
    """Shape of the decay after warm-up."""

    lr_decay_iters: Count | None = None
    """Steps until min_lr. None: the length of training."""

    lr_decay_samples: Count | None = None
    """Sequences until min_lr, with train_samples. None: train_samples."""

    lr_warmup_iters: Natural = 0
    """Steps of linear warm-up."""

    lr_warmup_samples: Natural = 0
    """Sequences of linear warm-up, with train_samples."""

    lr_warmup_fraction: Share | None = None
    """Warm-up as a fraction of the decay length. None: lr_warmup_iters or lr_warmup_samples."""

    lr_warmup_init: NonNegative = 0.0
    """Learning rate at the start of warm-up."""

    lr_wsd_decay_style: WsdDecayStyle = "linear"
    """Shape of the last part of WSD. Megatron flags set it to exponential."""

    lr_wsd_decay_iters: Count | None = None
    """Steps of the last part of WSD. None: not WSD."""

    lr_wsd_decay_samples: Count | None = None
    """Sequences of the last part of WSD, with train_samples. None: not WSD."""

    decoupled_lr: Positive | None = None
    """Learning rate of embedding and output weights. None: learning_rate."""

    decoupled_min_lr: NonNegative | None = None
    """min_lr of embedding and output weights. None: min_lr."""

    # --- weight decay
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""

    start_weight_decay: NonNegative | None = None
    """Weight decay at the start. None: weight_decay when constant, otherwise 0."""

    end_weight_decay: NonNegative | None = None
    """Weight decay at the end of training. None: weight_decay when constant, otherwise 0."""

    weight_decay_incr_style: WeightDecayStyle = "constant"
    """How weight decay goes from start to end."""

    no_weight_decay_params: tuple[str, ...] = ("Default_Setup",)
    """Regular expressions of parameter names without decay; ``Default_Setup`` stands for biases and
    one-dimensional ones.
    """

    # --- resume
    use_checkpoint_opt_param_scheduler: bool = True
    """On resume take the schedule stored in the checkpoint.

    Megatron flags set it to False: it must agree.
    """

    override_opt_param_scheduler: bool = False
    """On resume take this configuration's schedule and only the position from the checkpoint."""

    # --- distributed optimizer
    overlap_param_gather: bool = False
    """Gather updated parameters as the next forward needs them. False: all after the step."""

    @property
    def algorithm(self) -> Literal["adamw", "sgd"]:
        """The update rule behind the many names."""
        return "adamw" if self.optimizer_type in _ADAMW_NAMES else "sgd"

    def _resolve(self) -> None:
        constant = self.weight_decay_incr_style == "constant"
        self._fill("start_weight_decay", self.weight_decay if constant else 0.0)
        self._fill("end_weight_decay", self.weight_decay if constant else 0.0)

    def _check(self) -> None:
        for index, beta in enumerate(self.betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(
                    f"optimizer_config.betas[{index}] ({beta}) must lie in [0, 1); usual values "
                    "are 0.9 and 0.95"
                )
        self._check_learning_rate()
        self._check_weight_decay()
        if self.use_checkpoint_opt_param_scheduler and self.override_opt_param_scheduler:
            raise ValueError(
                "use_checkpoint_opt_param_scheduler and override_opt_param_scheduler are both "
                "set, but exclude each "
                "other; set use_checkpoint_opt_param_scheduler: False to override"
            )

    def _check_learning_rate(self) -> None:
        if self.min_lr > self.learning_rate:
            raise ValueError(
                f"min_lr ({self.min_lr}) must not exceed learning_rate ({self.learning_rate}); "
                "exchange or lower it"
            )
        if self.lr_warmup_init > self.learning_rate:
            raise ValueError(
                f"lr_warmup_init ({self.lr_warmup_init}) must not exceed learning_rate "
                f"({self.learning_rate}); "
                f"warm-up goes upwards, lower it"
            )
        if self.decoupled_min_lr is not None and self.decoupled_lr is None:
            raise ValueError(
                "decoupled_min_lr needs decoupled_lr; give decoupled_lr or leave it out"
            )
        if self.lr_warmup_fraction is not None and (self.lr_warmup_iters or self.lr_warmup_samples):
            raise ValueError(
                f"lr_warmup_fraction ({self.lr_warmup_fraction}) excludes lr_warmup_iters and "
                "lr_warmup_samples; keep one"
            )
        wsd_length = self.lr_wsd_decay_iters or self.lr_wsd_decay_samples
        if self.lr_decay_style == "WSD" and wsd_length is None:
            raise ValueError(
                "lr_decay_style WSD needs the length of its last part; give lr_wsd_decay_iters or "
                "lr_wsd_decay_samples"
            )

    def _check_weight_decay(self) -> None:
        start, end = self.start_weight_decay, self.end_weight_decay
        if start is None or end is None:  # filled by _resolve; tells the type checker so
            raise AssertionError("weight decay ends are filled before they are checked")
        if self.weight_decay_incr_style == "constant" and start != end:
            raise ValueError(
                f"start_weight_decay ({start}) and end_weight_decay ({end}) differ although "
                "weight_decay_incr_style is constant; choose linear or cosine, or make them equal"
            )
        if end < start:
            raise ValueError(
                f"end_weight_decay ({end}) must not be smaller than start_weight_decay ({start}); "
                "exchange them"
            )
