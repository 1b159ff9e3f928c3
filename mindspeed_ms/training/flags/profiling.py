# SPDX-License-Identifier: Apache-2.0
"""Flags of profiles."""

from __future__ import annotations

from mindspeed_ms.training.flags.row import (
    UNSET,
    Field,
    Flag,
    NoEffect,
    in_group,
    on,
    toggle,
    value,
    values,
)
from mindspeed_ms.training.flags.value_types import bool_or_word

_GUIDE_PROFILE_SWITCHES = (
    "with_stack",
    "memory",
    "communication",
    "parallel_strategy",
    "l2_cache",
    "hbm_ddr",
    "pcie",
    "data_process",
    "data_simplification",
    "offline_analyse",
)


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


ROWS: tuple[Flag, ...] = in_group(
    "profiling",
    [
        toggle("--profile", Field("training_config.profile"), False),
        value("--profile-step-start", int, Field("training_config.profile_step_start"), 10),
        value("--profile-step-end", int, Field("training_config.profile_step_end"), 12),
        value("--profile-save-path", str, Field("training_config.profile_save_path")),
        value(
            "--profile-level",
            str,
            Field("training_config.profile_level"),
            choices=("level0", "level1", "level2"),
        ),
        value("--profile-framework", bool_or_word, Field("training_config.profile_framework")),
        value("--profile-aicore-metrics", int, Field("training_config.profile_aicore_metrics")),
        toggle("--profile-op-time", Field("training_config.profile_op_time")),
        value(
            "--profile-dynamic-profiler-config-path",
            str,
            Field("training_config.profile_dynamic_profiler_config_path"),
        ),
        *(
            toggle(_dashed(f"profile_{name}"), Field(f"training_config.profile_{name}"))
            for name in _GUIDE_PROFILE_SWITCHES
        ),
        toggle(
            "--profile-with-memory",
            Field("training_config.profile_memory"),
            dest="profile_memory",
        ),
        values(
            "--profile-ranks",
            int,
            Field(
                "training_config.profile_ranks",
                # Arguments that Megatron has saved hold them as text; none means all.
                means=lambda ranks: tuple(int(rank) for rank in ranks) or UNSET,
                back=lambda ranks, _read: None if ranks is None else list(ranks),
            ),
            arity="some",
            small=None,  # those of a large run need not be here
        ),
        on("--use-pytorch-profiler", NoEffect("MindSpore's profiler is the only one")),
    ],
)
"""Every one of them."""
