# SPDX-License-Identifier: Apache-2.0
"""Flags of distillation from saved logits, and from a teacher in memory."""

from __future__ import annotations

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import Field, Flag, NoEffect, in_group, off, on, value

_GROUP = "distillation"

ROWS: tuple[Flag, ...] = (
    *in_group(
        _GROUP,
        [
            on("--freeze-all-layers", Field("training_config.freeze_all_layers")),
            value("--logits-save-dir", str, Field("training_config.logits_save_dir")),
            value("--logits-save-top-k", int, Field("training_config.logits_save_top_k")),
            value("--logits-save-top-p", float, Field("training_config.logits_save_top_p")),
            value(
                "--logits-save-top-p-min-k",
                int,
                Field("training_config.logits_save_top_p_min_k"),
                1,
            ),
            value(
                "--logits-save-dtype",
                str,
                Field("training_config.logits_save_dtype"),
                "fp16",
                choices=("fp16", "bf16", "fp32"),
            ),
            value("--logits-load-dir", str, Field("training_config.logits_load_dir")),
            value(
                "--logits-load-kd-loss-alpha",
                float,
                Field("training_config.logits_load_kd_loss_alpha"),
                1.0,
            ),
            on(
                "--logits-load-ignore-errors",
                Field("training_config.logits_load_ignore_errors"),
            ),
            on("--qad-enable", Field("training_config.qad_enable")),
            off(
                "--no-qad-enable", "qad_enable", Field("training_config.qad_enable"), default=False
            ),
            value("--qad-teacher-load", str, Field("training_config.qad_teacher_load")),
            value("--kl-temperature", float, Field("training_config.kl_temperature"), 1.0),
            value("--kl-loss-weight", float, Field("training_config.kl_loss_weight"), 1.0),
            value(
                "--kl-loss-reduction",
                str,
                Field("training_config.kl_loss_reduction"),
                "mean",
                choices=("mean", "sum"),
            ),
            value("--qad-lm-loss-weight", float, Field("training_config.qad_lm_loss_weight"), 0.0),
        ],
    ),
    *compact(
        _GROUP,
        NoEffect("a file of a step is read once, when the step needs it"),
        """
--logits-load-decode-threads int=4
--logits-load-msc-prefetch-depth int=2
--logits-load-prefetch-factor int=3
""",
    ),
)
