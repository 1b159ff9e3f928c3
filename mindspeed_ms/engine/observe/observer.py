# SPDX-License-Identifier: Apache-2.0
"""The one object that the loop tells what happens; it writes that down for whoever asked.

TensorBoard, Weights & Biases and ``--log-file`` are written by the last rank, as in Megatron; the
run's own record by the first one. Nothing here changes a number of the run, and a disk that is
full costs the curves, not the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mindspeed_ms.backend import bars, comm, device
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import parallel_state, run_state
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.optimizer import MegatronOptimizer
from mindspeed_ms.core.pipeline_parallel.executor import StepRecord
from mindspeed_ms.core.timers import Timers
from mindspeed_ms.engine.log_lines import IntervalReport
from mindspeed_ms.engine.observe import extras
from mindspeed_ms.engine.observe.diagnostics import Diagnostics
from mindspeed_ms.engine.observe.facts import plan_facts, start_facts
from mindspeed_ms.engine.observe.figures import (
    Figures,
    interval_figures,
    step_figures,
    validation_figures,
)
from mindspeed_ms.engine.observe.log_file import LogFile, Row
from mindspeed_ms.engine.observe.memory_table import RankMemory, memory_lines
from mindspeed_ms.engine.observe.profiler import Profiler
from mindspeed_ms.engine.observe.progress_file import ProgressFile
from mindspeed_ms.engine.observe.record import FILE_NAME as RECORD_NAME
from mindspeed_ms.engine.observe.record import RunRecord, Warnings
from mindspeed_ms.engine.observe.tensorboard import TensorBoardWriter, cut_events
from mindspeed_ms.engine.observe.timer_lines import (
    STEP_TIMERS,
    add_passes,
    timer_lines,
    times_by_name,
)
from mindspeed_ms.engine.observe.wandb_writer import WandbWriter
from mindspeed_ms.engine.output import print_rank_0, print_rank_last
from mindspeed_ms.engine.report.page import FILE_NAME as REPORT_NAME
from mindspeed_ms.engine.report.page import write_report
from mindspeed_ms.engine.step_report import StepReport
from mindspeed_ms.engine.timeline_file import (
    MEASURED_ITERATION,
    gathered,
    timeline_facts,
    timeline_recorder,
)
from mindspeed_ms.engine.train_state import TrainState
from mindspeed_ms.planning.operations import step_operations

logger = logging.getLogger(__name__)

_MOST_BARS = 20_000
"""Of a timeline in the record; more could not be told apart in a picture."""


class CurveWriter(Protocol):
    """Where figures go."""

    def write(self, figures: Figures) -> None:
        """Take the figures of one place of the run."""

    def write_texts(self, texts: Mapping[str, str], iteration: int) -> None:
        """Take texts by tag."""

    def close(self) -> None:
        """End."""


class Observer:
    """Writes down a run, from ``begin`` on.

    Args:
        config: the configuration.
        warnings: what the package logs meanwhile.
    """

    def __init__(self, config: AllConfig, warnings: Warnings) -> None:
        self._config, self._training = config, config.training_config
        self._warnings = warnings
        self._world_size = comm.get_world_size()
        self._tokens = config.model_config.seq_length
        self._curves: list[CurveWriter] = []
        self._log_file: LogFile | None = None
        self._record: RunRecord | None = None
        self._progress: ProgressFile | None = None
        self._row: Row = {}
        self._bar = bars.SILENT
        self._keeps_record = self._training.save_checkpoints or self._training.report
        self._first = 0
        self._profiler: Profiler | None = None
        self._diagnostics: Diagnostics | None = None
        self._base_memory = device.memory_stats()["current"]
        timers = run_state.current().member(Timers)
        timers.level = self._training.timing_log_level
        timers.waits = self._training.barrier_with_level_1_timing and self._world_size > 1

    def begin(
        self,
        state: TrainState,
        models: Sequence[DistributedDataParallel],
        optimizer: MegatronOptimizer,
    ) -> None:
        """Open what was asked for.

        Args:
            models: the chunks of this rank.
            optimizer: of the run.
            state: where the run begins; what was written about later iterations is taken out.

        Raises:
            ValueError: a file cannot be written.

        Parallelism: collective, as all methods that say so; the others are local.
        """
        self._first = state.iteration
        clips_scores = self._config.model_config.qk_clip
        self._diagnostics = Diagnostics(self._training, models, optimizer, clips_scores)
        if self._training.profile:
            self._profiler = Profiler(self._config, [model.module for model in models])
        problem = None
        try:
            self._open(state)
        except OSError as error:
            problem = f"{error.filename}: {error.strerror}"
        problems = comm.all_gather_object(problem) if self._world_size > 1 else [problem]
        for rank, one in enumerate(problems):
            if one is not None:
                self.close()
                raise ValueError(
                    f"rank {rank} cannot write what is to be written down about the run ({one}); "
                    "give --tensorboard-dir, --wandb-save-dir, --log-file and --save places that "
                    "can be written"
                )

    def _open(self, state: TrainState) -> None:
        training = self._training
        if comm.get_rank() == self._world_size - 1:
            if training.log_file is not None:
                self._log_file = LogFile(Path(training.log_file), state.iteration)
            if training.tensorboard_dir and extras.has_tensorboard():
                folder = Path(training.tensorboard_dir)
                if state.iteration or comm.num_restarts():
                    cut_events(folder, state.iteration, state.consumed_train_samples)
                elif any(folder.glob("events.out.tfevents.*")):
                    print_rank_last(
                        f"WARNING: {folder} holds curves of an earlier run, which are drawn "
                        "together with those of this one; another --tensorboard-dir keeps them "
                        "apart"
                    )
                self._curves.append(TensorBoardWriter(folder, training.tensorboard_queue_size))
            if training.wandb_project:
                self._curves.append(WandbWriter(training, self._config.to_dict()))
            texts = {
                f"{section}.{name}": str(value)
                for section, values in self._config.to_dict().items()
                for name, value in values.items()
            }
            for curve in self._curves:
                curve.write_texts(texts, state.iteration)
        if training.log_progress and not training.save_checkpoints:
            print_rank_0("WARNING: --log-progress writes beside checkpoints; give --save as well")
        if comm.get_rank() == 0 and self._keeps_record:
            facts = start_facts(self._config, state, self._world_size)
            self._record = RunRecord(Path(training.output_dir), facts)
            if training.log_progress and training.save_checkpoints:
                self._progress = ProgressFile(
                    Path(training.output_dir), self._world_size, self._operations(state)
                )

    @contextmanager
    def bar(self, state: TrainState, last: int) -> Iterator[None]:
        """A progress bar while the loop runs, where standard output is a terminal.

        Args:
            state: where the run stands.
            last: iteration the loop goes to.
        """
        with bars.bar(
            *("training", last, "step"),
            done=state.iteration,
            is_shown=comm.get_rank() == 0,
            is_kept=True,
        ) as self._bar:
            yield
        self._bar = bars.SILENT

    def _move_bar(self, report: StepReport) -> None:
        loss = report.losses.get("lm loss")
        facts = {} if loss is None else {"loss": f"{loss:.4f}"}
        speed = report.batch_size * self._tokens / report.seconds
        self._bar.tell(**facts, tokens_per_s=f"{speed:,.0f}")
        self._bar.update()

    def wants_params_norm(self, iteration: int) -> bool:
        """Whether an iteration's figures have the norm of the parameters; equal on all ranks."""
        training = self._training
        return training.log_params_norm and (
            iteration % training.tensorboard_log_interval == 0
            or iteration % (training.log_interval or 1) == 0
        )

    def optimizer_states(self, iteration: int, optimizer: MegatronOptimizer) -> dict[str, float]:
        """Norms of moments and weights, where an iteration's figures have them (collective)."""
        training = self._training
        is_due = iteration % training.tensorboard_log_interval == 0
        is_asked = training.log_optimizer_states_to_tensorboard and bool(
            training.tensorboard_dir or training.wandb_project
        )
        return optimizer.state_figures() if is_asked and is_due else {}

    def begin_step(self, iteration: int) -> None:
        """An iteration is about to run (collective where it is profiled)."""
        if self._diagnostics is not None:
            self._diagnostics.begin_step()
        if self._profiler is not None:
            self._profiler.begin_step(iteration)

    def look(
        self,
        iteration: int,
        losses: Mapping[str, float],
        reports: Sequence[Mapping[str, tuple[Any, Any]]],
        norm: float | None,
    ) -> None:
        """Look at what an iteration made, as far as that is asked for (collective).

        Args:
            iteration: its number.
            losses: by name, equal on all ranks.
            reports: sums and counts of this rank's micro-batches.
            norm: of the gradients; None: the step was skipped.
        """
        if self._diagnostics is not None:
            self._diagnostics.look(iteration, losses, reports, norm)

    def max_attention_logit(self) -> float | None:
        """The largest attention score of the iteration (collective); None if nobody asks."""
        return None if self._diagnostics is None else self._diagnostics.max_attention_logit()

    def watched(self, data_iterator: Iterator) -> Iterator:
        """The micro-batches of a step, whose reading may be recorded."""
        return data_iterator if self._profiler is None else self._profiler.watched(data_iterator)

    def end_training(self, state: TrainState) -> None:
        """The loop is left (collective)."""
        if self._profiler is not None:
            self._profiler.finish()
        self.note_memory(state)

    def after_step(self, report: StepReport) -> None:
        """An iteration is done (collective where it is profiled)."""
        if self._diagnostics is not None:
            self._diagnostics.end_step(report.seconds)
        if self._profiler is not None:
            self._profiler.end_step(report.iteration)
        if self._bar is not bars.SILENT:
            self._move_bar(report)
        is_due = report.iteration % self._training.tensorboard_log_interval == 0
        if self._curves and is_due:
            figures = step_figures(
                report,
                self._training,
                world_size=self._world_size,
                memory=(
                    device.memory_stats() if self._training.log_memory_to_tensorboard else None
                ),
                per_layer=self._config.moe_config.moe_per_layer_logging,
            )
            self._write(figures)
        if self._log_file is not None or (self._record is not None and is_due):
            self._row = self._row_of(report)
        if self._record is not None and is_due:
            self._note(self._record, "step", self._row)

    def _row_of(self, report: StepReport) -> Row:
        tokens = report.batch_size * self._tokens
        row: Row = {
            "iteration": report.iteration,
            "consumed_samples": report.consumed_samples,
            "consumed_tokens": report.consumed_samples * self._tokens,
            "batch_size": report.batch_size,
            **report.losses,
            "learning_rate": report.learning_rate,
            "loss_scale": report.loss_scale,
            "grad_norm": report.grad_norm,
        }
        if report.num_zeros is not None:
            row["num_zeros"] = report.num_zeros
        if report.params_norm is not None:
            row["params_norm"] = report.params_norm
        if report.max_attention_logit is not None:
            row["max_attention_logit"] = report.max_attention_logit
        return row | {
            "skipped": report.skipped,
            "seconds": round(report.seconds, 6),
            "tokens_per_second": round(tokens / report.seconds, 1),
        }

    def after_line(self, line: IntervalReport) -> None:
        """A log line was printed (collective where steps are timed or looked at)."""
        timers = {}
        if self._training.timing_log_level:
            timers = self._print_times(STEP_TIMERS, self._training.log_interval or 1)
        figures: dict[str, float] = {}
        if self._diagnostics is not None:
            lines, figures = self._diagnostics.at_line(line.iteration)
            for text in lines:
                print_rank_last(text)
        if self._curves:
            self._write(interval_figures(line, self._training, timers, figures))
        if self._log_file is not None:
            self._log_file.flush()

    def after_validation(
        self, results: Sequence[tuple[str, Mapping[str, float]]], state: TrainState, split: str
    ) -> None:
        """Sets were evaluated.

        Args:
            results: what tells a set apart, and its losses.
            state: where the run stands.
            split: ``validation`` or ``test``.
        """
        place = (state.iteration, state.consumed_train_samples)
        for suffix, losses in results:
            label = f"{split}{suffix}"
            figures = validation_figures(
                losses, place, label, with_ppl=self._training.log_validation_ppl_to_tensorboard
            )
            self._write(figures)
            if self._row:
                self._row |= {f"{name} {label}": value for name, value in losses.items()}
            if self._record is not None:
                facts = {"iteration": state.iteration, "split": label, "losses": dict(losses)}
                self._note(self._record, "validation", facts)

    def recorder(self, iteration: int, train_iters: int) -> Callable[[StepRecord], None] | None:
        """What takes the passes of the coming iteration; None when nobody wants them.

        Args:
            iteration: its number, from 1.
            train_iters: iterations of the run.
        """
        takers: list[Callable[[StepRecord], None]] = []
        timeline = timeline_recorder(self._training.pipeline_timeline, iteration, train_iters)
        if timeline is not None:
            takers.append(timeline)
        if self._training.timing_log_level == 2:
            takers.append(partial(add_passes, run_state.current().member(Timers)))
        if self._keeps_record and iteration == min(self._first + MEASURED_ITERATION, train_iters):
            takers.append(partial(self._note_timeline, iteration))
        if self._profiler is not None:
            takers.append(self._profiler.take_passes)
        if not takers:
            return None

        def take(record: StepRecord) -> None:
            for taker in takers:
                taker(record)

        return take

    def _note_timeline(self, iteration: int, record: StepRecord) -> None:
        """Note the passes of an iteration (collective over every pipeline group)."""
        timeline = gathered(record)
        if timeline is None or self._record is None or len(timeline.bars) > _MOST_BARS:
            return
        group = self._config.parallel_config.microbatch_group_size_per_vp_stage
        facts = {"iteration": iteration, **timeline_facts(timeline, group)}
        self._note(self._record, "timeline", facts)

    def print_timers(self, *names: str) -> None:
        """Print timers of level 0, where the log is Megatron's (collective)."""
        if self._training.log_style == "megatron":
            self._print_times(names)

    def _print_times(self, names: Sequence[str], count: int = 1) -> dict[str, float]:
        """Print timers, which begin anew; the most seconds of a rank by name (collective)."""
        mine = run_state.current().member(Timers).taken(names)
        everyones = comm.all_gather_object(mine) if self._world_size > 1 else [mine]
        times = times_by_name(everyones, names, count)
        for line in timer_lines(times, self._training.timing_log_option):
            print_rank_last(line)
        return {name: max(seconds) for name, seconds in times.items()}

    def after_save(self, state: TrainState) -> None:
        """A checkpoint was written, or handed to the background (collective)."""
        self.print_timers("save-checkpoint")
        if self._record is not None:
            self._note(self._record, "checkpoint", {"iteration": state.iteration})
        if self._progress is not None:
            write = partial(
                self._progress.saved,
                state.iteration,
                self._operations(state),
                state.consumed_train_samples * self._tokens,
                in_background=self._training.async_save,
            )
            self._guarded("progress file", write)

    def after_background_save(self, iteration: int) -> None:
        """A checkpoint that was handed to the background is complete."""
        if self._progress is not None:
            self._guarded("progress file", partial(self._progress.completed, iteration))

    def _operations(self, state: TrainState) -> float:
        """Floating point operations of the run so far."""
        return step_operations(self._config.model_config, state.consumed_train_samples)

    def note_memory(self, state: TrainState, *, is_shown: bool = False) -> None:
        """Note the memory of all ranks (collective).

        Args:
            state: where the run stands.
            is_shown: also print it as a table, on the last rank.
        """
        if not (is_shown or self._keeps_record):
            return
        used = device.memory_stats()
        rank = comm.get_rank()
        stage = parallel_state.get_pipeline_model_parallel_rank()
        mine = RankMemory(rank, stage, used["current"], used["peak"], self._base_memory)
        ranks = comm.all_gather_object(mine) if self._world_size > 1 else [mine]
        if is_shown and rank == self._world_size - 1:
            plan = plan_facts(self._config, self._world_size)
            stages = None if plan is None else plan["stages"]
            for line in memory_lines(state.iteration, ranks, stages):
                print_rank_last(line)
        if self._record is not None:
            facts = {"iteration": state.iteration, "ranks": [one.facts() for one in ranks]}
            self._note(self._record, "memory", facts)

    def end_iteration(self, state: TrainState) -> None:
        """Nothing more comes about an iteration (collective where memory is shown)."""
        iteration, interval = state.iteration, self._training.log_memory_interval
        if interval is not None and iteration % interval == 0:
            self.note_memory(state, is_shown=True)
        if self._log_file is not None and self._row:
            if not self._guarded("log file", partial(self._log_file.write, self._row)):
                self._log_file = None
        self._row = {}
        if self._warnings.lines:
            for text in self._warnings.taken():
                if self._record is not None:
                    self._note(self._record, "warning", {"iteration": iteration, "text": text})

    def _write(self, figures: Figures) -> None:
        self._curves = [
            curve
            for curve in self._curves
            if self._guarded("curves", partial(curve.write, figures))
        ]

    def _note(self, record: RunRecord, kind: str, facts: Mapping[str, object]) -> None:
        if not self._guarded("record", partial(record.add, kind, **facts)):
            self._record = None

    def _guarded(self, what: str, write: Callable[[], None]) -> bool:
        """Write; say so once if that cannot be done any more."""
        try:
            write()
        except OSError as error:
            logger.warning("the %s cannot be written any more (%s); training goes on", what, error)
            return False
        return True

    def close(self) -> None:
        """Bring everything out, leave nothing open, and make the report if it was asked for."""
        has_record = self._record is not None
        if self._profiler is not None:
            self._profiler.abandon()
        if self._diagnostics is not None:
            self._diagnostics.end()
        ends: list[Callable[[], None]] = [curve.close for curve in self._curves]
        if self._log_file is not None:
            ends.append(self._log_file.close)
        if self._record is not None:
            ends.append(self._record.close)
        self._curves, self._log_file, self._record = [], None, None
        for end in ends:
            self._guarded("last figures", end)
        folder = Path(self._training.output_dir)
        if self._training.report and has_record and (folder / RECORD_NAME).is_file():
            output = folder / REPORT_NAME
            if self._guarded("report", partial(write_report, [folder], output)):
                print_rank_0(f"report of the run: {output}")
