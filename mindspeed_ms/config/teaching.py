# SPDX-License-Identifier: Apache-2.0
"""Distillation: from saved logits, or from a teacher in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mindspeed_ms.config.kinds import Count, NonNegative, Positive, Share
from mindspeed_ms.config.section import Section


@dataclass(frozen=True, kw_only=True)
class Teaching(Section):
    """The part of ``training_config`` that says who teaches whom."""

    freeze_all_layers: bool = False
    """Go through all steps and change no weight, as a teacher does."""

    logits_save_dir: str | None = None
    """Folder for the likeliest tokens of every place, which a student reads. None: not saved."""

    logits_save_top_k: Count | None = None
    """How many tokens of a place; needed with logits_save_dir."""

    logits_save_top_p: Share | None = None
    """Of these only the first that reach this probability together. None: all."""

    logits_save_top_p_min_k: Count = 1
    """With logits_save_top_p, keep at least so many."""

    logits_save_dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Type of the saved log probabilities."""

    logits_load_dir: str | None = None
    """Folder of a teacher's tokens: the loss is the divergence from them. None: labels alone."""

    logits_load_kd_loss_alpha: Share = 1.0
    """Weight of that loss, at most 1; the labels' loss has the rest."""

    logits_load_ignore_errors: bool = False
    """Take the labels' loss where a teacher's tokens are missing, damaged or of other data."""

    qad_enable: bool = False
    """Learn from a teacher in memory: the loss is the divergence from what it expects."""

    qad_teacher_load: str | None = None
    """Checkpoint of the teacher, in any format."""

    qad_teacher_config: dict[str, Any] | None = None
    """Sections of the teacher's model that differ. None: what its checkpoint says."""

    kl_temperature: Positive = 1.0
    """Divides both models' logits; the divergence is multiplied by its square."""

    kl_loss_weight: NonNegative = 1.0
    """Factor of the divergence."""

    kl_loss_reduction: Literal["mean", "sum"] = "mean"
    """Of the divergence over the tokens of a micro-batch."""

    qad_lm_loss_weight: NonNegative = 0.0
    """Factor of the labels' loss beside it; 0: the labels' loss is only logged, as in MindSpeed."""

    def _check_teaching(self) -> None:
        self._check_saved_logits()
        self._check_teacher()

    def _check_saved_logits(self) -> None:
        if self.logits_save_dir is not None and self.logits_load_dir is not None:
            raise ValueError(
                "logits_save_dir and logits_load_dir are both set, but a run is teacher or "
                "student; keep one"
            )
        if self.logits_save_dir is not None and self.logits_save_top_k is None:
            raise ValueError(
                "logits_save_dir needs the number of tokens to keep of a place; give "
                "logits_save_top_k"
            )

    def _check_teacher(self) -> None:
        if not self.qad_enable:
            return
        if self.qad_teacher_load is None:
            raise ValueError(
                "qad_enable needs the teacher; name its checkpoint with qad_teacher_load "
                "(--qad-teacher-load)"
            )
        if self.logits_save_dir is not None or self.logits_load_dir is not None:
            raise ValueError(
                "qad_enable has its teacher in memory, and logits_save_dir and logits_load_dir "
                "are for one that is not; leave one of them out"
            )
