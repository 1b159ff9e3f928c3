# SPDX-License-Identifier: Apache-2.0
"""MindSpore's profiler, which records what an NPU does; not verified on hardware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore.profiler as ms_profiler


@dataclass(frozen=True, kw_only=True, slots=True)
class AscendProfileSettings:
    """What is recorded; the names are the user guide's, without ``profile_``."""

    save_path: str
    level: str
    """``level0``, ``level1`` or ``level2``."""
    with_stack: bool
    memory: bool
    framework: bool
    parallel_strategy: bool
    aicore_metrics: int
    """-1 for none, else the place in ``METRICS``."""
    l2_cache: bool
    hbm_ddr: bool
    pcie: bool
    data_process: bool
    data_simplification: bool
    op_time: bool
    communication: bool
    """Also record the links between NPUs."""
    offline_analyse: bool
    """Only record."""


METRICS = (
    *("PipeUtilization", "ArithmeticUtilization", "Memory", "MemoryL0", "MemoryUB"),
    *("ResourceConflictRatio", "MemoryAccess"),
)


def start(settings: AscendProfileSettings) -> Any:
    """Start MindSpore's profiler; ``stop`` of what is returned ends and writes it."""
    metrics = ms_profiler.AicoreMetrics
    kinds = ms_profiler.ProfilerActivity
    activities = [kinds.NPU] if settings.op_time else []
    if settings.framework or settings.memory or settings.with_stack or not activities:
        activities.insert(0, kinds.CPU)
    more = ms_profiler._ExperimentalConfig(
        profiler_level=getattr(ms_profiler.ProfilerLevel, settings.level.capitalize()),
        aic_metrics=(
            metrics.AiCoreNone
            if settings.aicore_metrics < 0
            else getattr(metrics, METRICS[settings.aicore_metrics])
        ),
        l2_cache=settings.l2_cache,
        data_simplification=settings.data_simplification,
        sys_interconnection=settings.communication,
    )
    handler = ms_profiler.tensorboard_trace_handler(
        dir_name=settings.save_path, analyse_flag=not settings.offline_analyse
    )
    profile = ms_profiler.profile(
        activities=activities,
        with_stack=settings.with_stack,
        profile_memory=settings.memory,
        data_process=settings.data_process,
        parallel_strategy=settings.parallel_strategy,
        hbm_ddr=settings.hbm_ddr,
        pcie=settings.pcie,
        start_profile=False,
        on_trace_ready=handler,
        experimental_config=more,
    )
    profile.start()
    return profile
