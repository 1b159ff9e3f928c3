# SPDX-License-Identifier: Apache-2.0
"""The profile of some iterations: MindSpore's own on an NPU, a trace of ours on CPU."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mindspore.nn import Cell

from mindspeed_ms.backend import ascend_profiler, comm, device
from mindspeed_ms.config import AllConfig, TrainingConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.pipeline_parallel.executor import StepRecord
from mindspeed_ms.engine.observe.profile_trace import (
    TRACE_NAME,
    RankTrace,
    Span,
    summary_lines,
    write_merged,
    write_rank,
)
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.ops import selection

logger = logging.getLogger(__name__)

_MEMORY_SECONDS = 1e-3
"""Memory is looked at no more often than this."""
_OF_AN_NPU = ("aicore_metrics", "l2_cache", "hbm_ddr", "pcie")
"""Settings that mean something on an NPU only."""


class Profiler:
    """Records the iterations that the configuration names.

    Args:
        config: the configuration.
        chunks: the model of this rank.

    Raises:
        ValueError: a rank is named that the run does not have.

    Parallelism: collective over the world.
    """

    def __init__(self, config: AllConfig, chunks: Sequence[Cell]) -> None:
        self._config, self._training = config, config.training_config
        self._chunks = chunks
        training = self._training
        wanted = training.profile_ranks
        if wanted and max(wanted) >= comm.get_world_size():
            raise ValueError(
                f"profile_ranks names rank {max(wanted)}, but the run has {comm.get_world_size()} "
                "ranks, numbered from 0; name others, or leave it out for all"
            )
        self._is_mine = not wanted or comm.get_rank() in wanted
        self._window = (training.profile_step_start, training.profile_step_end)
        self._switch = training.profile_dynamic_profiler_config_path
        self._changed = 0.0
        self._running: CpuProfile | Any = None
        self._is_recording = self._has_recorded = False
        if not device.is_ascend():
            for line in notes_for_cpu(training):
                print_rank_0(line)

    def begin_step(self, iteration: int) -> None:
        """An iteration is about to run."""
        if self._switch:
            self._look_at_switch()
        first, last = self._window
        if not self._is_recording and first <= iteration <= last:
            self._is_recording = self._has_recorded = True
            if self._is_mine:
                self._start()
        if isinstance(self._running, CpuProfile):
            self._running.begin_step()

    def _look_at_switch(self) -> None:
        """Take the window from the file, when that has changed."""
        found: tuple[float, int, int] | None = None
        if comm.get_rank() == 0:
            try:
                changed = Path(self._switch).stat().st_mtime
                if changed != self._changed:
                    content = json.loads(Path(self._switch).read_text(encoding="utf-8"))
                    found = (changed, int(content["start_step"]), int(content["stop_step"]))
            except FileNotFoundError:
                pass
            except (OSError, ValueError, KeyError, TypeError) as error:
                found = (changed, *self._window)
                logger.warning(
                    "%s is not used (%s: %s); it must hold numbers start_step and stop_step",
                    *(self._switch, type(error).__name__, error),
                )
        if comm.get_world_size() > 1:
            found = comm.broadcast_object(found, 0)
        if found is not None:
            self._changed, *window = found
            self._window = (window[0], window[1])

    def _start(self) -> None:
        if device.is_ascend():
            self._running = ascend_profiler.start(ascend_settings(self._training))
        else:
            self._running = CpuProfile(self._config, self._chunks)

    def end_step(self, iteration: int) -> None:
        """An iteration is over."""
        if isinstance(self._running, CpuProfile):
            self._running.end_step(iteration)
        if self._is_recording and iteration >= self._window[1]:
            self.finish()

    def take_passes(self, record: StepRecord) -> None:
        """Note the passes of the schedule."""
        if isinstance(self._running, CpuProfile):
            self._running.take_passes(record)

    def watched(self, data_iterator: Iterator) -> Iterator:
        """The micro-batches, whose reading is recorded if that was asked for."""
        if isinstance(self._running, CpuProfile) and self._training.profile_data_process:
            return self._running.watched(data_iterator)
        return data_iterator

    def finish(self) -> None:
        """Stop recording and write what there is; nothing where nothing is recorded."""
        if not self._is_recording:
            return
        self._is_recording = False
        running, self._running = self._running, None
        folder = Path(self._training.profile_save_path or "profile")
        if device.is_ascend():
            if running is not None:
                running.stop()
            print_rank_0(f"profile written to {folder}")
            return
        trace = None if running is None else running.stop()
        _write(folder, trace, self._training)

    def abandon(self) -> None:
        """Stop recording, without the other ranks."""
        if not self._has_recorded:
            first, last = self._window
            print_rank_0(
                f"WARNING: nothing was profiled: no iteration from {first} to {last} was run "
                "(--profile-step-start, --profile-step-end)"
            )
        if isinstance(self._running, CpuProfile):
            self._running.stop()
        self._running, self._is_recording = None, False


def _write(folder: Path, trace: RankTrace | None, training: TrainingConfig) -> None:
    """Write what was recorded, where nobody wants to do that later (collective)."""
    comm.barrier()
    if trace is not None:
        trace.clock = time.perf_counter()
    is_later = training.profile_offline_analyse
    if trace is not None and (is_later or not training.profile_data_simplification):
        _guarded(partial(write_rank, folder, trace))
    if is_later:
        print_rank_0(f"profile written; python -m tools.merge_profile {folder} merges it")
        return
    everyones = comm.all_gather_object(trace) if comm.get_world_size() > 1 else [trace]
    recorded = [one for one in everyones if one is not None]
    if comm.get_rank() == 0 and recorded:
        write = partial(write_merged, folder, recorded, with_table=training.profile_communication)
        place = f"profile in {folder / TRACE_NAME}" if _guarded(write) else "no profile"
        print_rank_0(f"{place}; times of the recorded iterations in ms:")
        for line in summary_lines(recorded):
            print_rank_0(line)


def _guarded(write: Callable[[], object]) -> bool:
    """Write, and whether that went well: a disk that is full costs the profile, not the run."""
    try:
        write()
    except OSError as error:
        logger.warning("the profile could not be written (%s); training goes on", error)
        return False
    return True


def notes_for_cpu(training: TrainingConfig) -> list[str]:
    """A line for each setting that says nothing on a CPU."""
    defaults = TrainingConfig
    return [
        f"profile_{name} says nothing on CPU: it counts what an NPU does"
        for name in _OF_AN_NPU
        if getattr(training, f"profile_{name}") != getattr(defaults, f"profile_{name}")
    ]


def ascend_settings(training: TrainingConfig) -> ascend_profiler.AscendProfileSettings:
    """The settings under MindSpore's meaning."""
    return ascend_profiler.AscendProfileSettings(
        save_path=training.profile_save_path or "profile",
        level=training.profile_level,
        with_stack=training.profile_with_stack,
        memory=training.profile_memory,
        framework=records_framework(training),
        parallel_strategy=training.profile_parallel_strategy,
        aicore_metrics=training.profile_aicore_metrics,
        l2_cache=training.profile_l2_cache,
        hbm_ddr=training.profile_hbm_ddr,
        pcie=training.profile_pcie,
        data_process=training.profile_data_process,
        data_simplification=training.profile_data_simplification,
        op_time=training.profile_op_time,
        communication=training.profile_communication,
        offline_analyse=training.profile_offline_analyse,
    )


def records_framework(training: TrainingConfig) -> bool:
    """Whether what lies above the operators is recorded."""
    return training.profile_framework not in (False, "None")


class CpuProfile:
    """Records this process from now on.

    Args:
        config: the configuration.
        chunks: the model of this rank.
    """

    def __init__(self, config: AllConfig, chunks: Sequence[Cell]) -> None:
        training = config.training_config
        rank = comm.get_rank()
        self._trace = RankTrace(
            rank, platform.node(), parallel_state.get_pipeline_model_parallel_rank()
        )
        if training.profile_parallel_strategy:
            self._trace.layout = _place()
        self._with_operators = training.profile_op_time
        self._with_memory = training.profile_memory
        self._looked = 0.0
        self._began = 0.0
        if training.profile_op_time or training.profile_memory:
            selection.start_recording(
                self._take_kernel,
                with_shapes=training.profile_level != "level0",
                with_stack=training.profile_with_stack,
            )
        if comm.get_world_size() > 1:
            comm.start_recording(self._trace.calls.append)
        self._hooks: list[Any] = []
        if records_framework(training) or training.profile_level == "level2":
            self._hook(chunks)

    def _hook(self, chunks: Sequence[Cell]) -> None:
        """Record the forward of every cell; those inside lie inside."""
        starts: list[float] = []

        def begin(_cell: Cell, _inputs: tuple) -> None:
            starts.append(time.perf_counter())

        def ending(name: str) -> Callable[[Cell, tuple, Any], None]:
            def end(_cell: Cell, _inputs: tuple, _output: Any) -> None:
                self._span("cells", name, starts.pop())

            return end

        for chunk in chunks:
            for name, cell in chunk.cells_and_names():
                self._hooks.append(cell.register_forward_pre_hook(begin))
                self._hooks.append(cell.register_forward_hook(ending(name or "model")))

    def _span(self, lane: str, name: str, start: float) -> None:
        self._trace.spans.append(Span(lane, name, start, time.perf_counter()))

    def _take_kernel(self, name: str, start: float, end: float, facts: dict[str, Any]) -> None:
        if self._with_operators:
            self._trace.spans.append(Span("operators", name, start, end, facts))
        if self._with_memory and end - self._looked > _MEMORY_SECONDS:
            self._looked = end
            self._trace.memory.append((end, device.memory_stats()["current"]))

    def begin_step(self) -> None:
        """An iteration begins."""
        self._began = time.perf_counter()

    def end_step(self, iteration: int) -> None:
        """It is over."""
        self._span("iterations", f"iteration {iteration}", self._began)

    def take_passes(self, record: StepRecord) -> None:
        """Note the passes of the schedule."""
        for step in record.timeline:
            facts = {"microbatch": step.microbatch, "chunk": step.chunk}
            name = step.transfers or f"{step.kind} {step.microbatch}"
            self._trace.spans.append(Span("schedule", name, step.start, step.end, facts))

    def watched(self, data_iterator: Iterator) -> Iterator:
        """The micro-batches; how long each is waited for is recorded."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(data_iterator)
            except StopIteration:
                return
            self._span("data", "read a micro-batch", start)
            yield batch

    def stop(self) -> RankTrace:
        """Stop recording; what there is."""
        selection.stop_recording()
        comm.stop_recording()
        for hook in self._hooks:
            hook.remove()
        return self._trace


def _place() -> dict[str, Any]:
    """Groups of this rank."""
    groups = {
        "tensor": parallel_state.get_tensor_model_parallel_group(),
        "pipeline": parallel_state.get_pipeline_model_parallel_group(),
        "data": parallel_state.get_data_parallel_group(),
        "context": parallel_state.get_context_parallel_group(),
    }
    return {name: list(group.ranks) for name, group in groups.items()}
