# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, evaluation, and what is printed about them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np

from mindspeed_ms.backend import autograd, bars, comm, memory
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import distillation, parallel_state
from mindspeed_ms.core.distributed import finalize_model_grads
from mindspeed_ms.core.distributed.bucket import scale_
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.num_microbatches_calculator import (
    get_current_running_global_batch_size,
    get_num_microbatches,
    update_num_microbatches,
)
from mindspeed_ms.core.optimizer import MegatronOptimizer, OptimizerParamScheduler, StepResult
from mindspeed_ms.core.pipeline_parallel import get_forward_backward_func
from mindspeed_ms.core.tensor_parallel.random import get_rng_tracker
from mindspeed_ms.core.timers import timed
from mindspeed_ms.engine.batch_counts import is_evaluated
from mindspeed_ms.engine.first_bad_number import explain
from mindspeed_ms.engine.forward_step import TokenWeights
from mindspeed_ms.engine.health import Health
from mindspeed_ms.engine.layer_losses import collect_layer_losses, mean_layer_losses
from mindspeed_ms.engine.log_lines import (
    IntervalReport,
    guide_line,
    layer_loss_lines,
    megatron_line,
    short_line,
    validation_lines,
)
from mindspeed_ms.engine.micro_batches import EndlessLoader, SharedLoader
from mindspeed_ms.engine.observe.energy import EnergyLog
from mindspeed_ms.engine.observe.observer import Observer
from mindspeed_ms.engine.observe.saved_steps import SavedSteps
from mindspeed_ms.engine.output import print_rank_last
from mindspeed_ms.engine.run_checkpoints import RunCheckpoints
from mindspeed_ms.engine.run_data import EvaluationSet
from mindspeed_ms.engine.step_report import StepReport
from mindspeed_ms.engine.stop_conditions import StopConditions
from mindspeed_ms.engine.train_state import TrainState
from mindspeed_ms.planning.operations import tflops_per_rank


@dataclass(kw_only=True, slots=True)
class TrainingSetup:
    """All that the loop works with."""

    config: AllConfig
    model: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    forward_step: Callable
    train_iters: int = 0
    """The last iteration; known when the run knows where it starts."""
    state: TrainState = field(default_factory=TrainState)
    on_step: Callable[[StepReport], str | None] | None = None
    token_weights: TokenWeights | None = None
    """None: every micro-batch weighs the same."""
    checkpoints: RunCheckpoints | None = None
    """None: the run keeps no checkpoints."""
    health: Health
    """What is done about numbers that are none."""
    observer: Observer
    """What writes down how the run goes."""
    saved_steps: SavedSteps | None = None
    """What writes down single iterations; None: nothing does."""
    started: float = field(default_factory=time.time)
    """When the run began, in seconds since the epoch."""


def train(
    setup: TrainingSetup,
    data_iterator: EndlessLoader | SharedLoader,
    valid_sets: Sequence[EvaluationSet] = (),
    until: int | None = None,
) -> str | None:
    """Iterate, printing, evaluating and saving at the configured intervals.

    Args:
        setup: the run.
        data_iterator: its micro-batches.
        valid_sets: what is evaluated at intervals.
        until: iteration to stop at; None: the run's last one. A checkpoint that is due at the end
            of the run is written when its last iteration is done.

    Returns:
        What ended the run before its last iteration; None if nothing did.
    """
    training, state, observer = setup.config.training_config, setup.state, setup.observer
    log = IntervalLog(setup)
    stop = StopConditions(training, setup.started)
    reason = stop.switched_off()
    if reason is not None:
        print_rank_last(reason)
        return reason
    last = setup.train_iters if until is None else min(until, setup.train_iters)
    with stop.watched(), observer.bar(state, last):
        while state.iteration < last and reason is None:
            if setup.checkpoints is not None:
                setup.checkpoints.before_step(setup)
            if state.iteration + 1 in (training.iterations_to_skip or ()):
                skip_step(setup, data_iterator)
                continue
            observer.begin_step(state.iteration + 1)
            log.begin_step()
            report = train_step(setup, data_iterator)
            observer.after_step(report)
            line = log.add(report, data_iterator)
            if line is not None:
                observer.after_line(line)
            asked = None if setup.on_step is None else setup.on_step(report)
            if is_evaluated(training, state.iteration):
                validate(setup, valid_sets, f"iteration {state.iteration}")
            setup.health.compare_replicas(setup.optimizer, state.iteration)
            reason = stop.reason(state.iteration) or (asked if isinstance(asked, str) else None)
            if setup.checkpoints is not None:
                setup.checkpoints.after_step(setup, must_save=reason is not None)
            observer.end_iteration(state)
    if reason is not None:
        print_rank_last(reason)
    observer.end_training(state)
    is_over = reason is not None or state.iteration >= setup.train_iters
    if setup.checkpoints is not None and is_over:
        setup.checkpoints.at_end(setup)
    return reason


def skip_step(setup: TrainingSetup, data_iterator: Iterator) -> None:
    """Read the micro-batches of one step, and leave everything but the counts as it is.

    Source: Megatron-LM ``dummy_train_step``: no line, evaluation, checkpoint or end of the run
    belongs to a skipped iteration, and the learning rate stays.
    """
    state = setup.state
    update_num_microbatches(state.consumed_train_samples)
    for _ in range(get_num_microbatches()):
        next(data_iterator)
    state.iteration += 1
    state.consumed_train_samples += get_current_running_global_batch_size()


class StepAgain:
    """The micro-batches of a step on their way to the model, kept to do its forward again."""

    def __init__(self, data_iterator: Iterator) -> None:
        self._data = data_iterator
        self._kept: list[Any] = []
        self._streams = get_rng_tracker().get_states()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._kept.append(next(self._data))
        return self._kept[-1]

    def explain(self, setup: TrainingSetup, is_loss_bad: bool) -> str:
        """Where the first bad number of the step comes from (collective over the world)."""
        return explain(setup.model, partial(self._repeat_forward, setup) if is_loss_bad else None)

    def _repeat_forward(self, setup: TrainingSetup) -> None:
        """The same forward, with the same dropout; only the streams are as before afterwards."""
        tracker = get_rng_tracker()
        later = tracker.get_states()
        tracker.set_states(self._streams)
        try:
            get_forward_backward_func()(
                forward_step_func=setup.forward_step,
                data_iterator=iter(self._kept),
                model=setup.model,
                num_microbatches=get_num_microbatches(),
                forward_only=True,
            )
        finally:
            tracker.set_states(later)


def train_step(setup: TrainingSetup, data_iterator: Iterator) -> StepReport:
    """Forward and backward of one global batch, and the optimizer step."""
    start = time.perf_counter()
    state = setup.state
    comm.note_iteration(state.iteration + 1)
    update_num_microbatches(state.consumed_train_samples)
    batch_size = get_current_running_global_batch_size()
    loss_scale = setup.optimizer.loss_scale
    for model in setup.model:
        model.zero_grad_buffer()
    if setup.token_weights is not None:
        setup.token_weights.seen = 0.0
    teaching = distillation.current()
    teaching.begin_step(state.consumed_train_samples)
    saved = setup.saved_steps
    if saved is not None:
        saved.begin(state.iteration + 1)
    step_again = StepAgain(setup.observer.watched(data_iterator))
    with timed("forward-backward", 1):
        reports = get_forward_backward_func()(
            forward_step_func=setup.forward_step,
            data_iterator=step_again,
            model=setup.model,
            num_microbatches=get_num_microbatches(),
            loss_scale=loss_scale,
            recorder=setup.observer.recorder(state.iteration + 1, setup.train_iters),
        )
    teaching.end_step()
    losses = mean_losses(reports)
    layer_losses = collect_layer_losses(setup.config.model_config, get_num_microbatches())
    finalize_model_grads(setup.model)
    if setup.token_weights is not None:
        scale_gradients(setup.model, setup.token_weights.factor(get_num_microbatches()))
    if saved is not None:
        saved.after_backward(state.iteration + 1)
    apply_schedule(setup)

    def watch(norm: float) -> None:
        setup.health.watch(
            state.iteration + 1, losses, norm, lambda is_bad: step_again.explain(setup, is_bad)
        )

    used_rate = setup.scheduler.get_lr()
    with timed("optimizer", 1):
        if setup.config.training_config.freeze_all_layers:
            result = StepResult(True, None, None)
        else:
            result = setup.optimizer.step(watch)
    if saved is not None:
        saved.after_update(state.iteration + 1)
    setup.observer.look(state.iteration + 1, losses, reports, result.grad_norm)
    setup.health.note_step(state.iteration + 1, not result.success, setup.optimizer)
    if result.success:
        setup.scheduler.step(batch_size)
    state.iteration += 1
    state.consumed_train_samples += batch_size
    return StepReport(
        iteration=state.iteration,
        losses=losses | mean_layer_losses(setup.config.model_config, layer_losses),
        grad_norm=result.grad_norm,
        num_zeros=result.num_zeros_in_grad,
        learning_rate=setup.scheduler.get_lr(),
        skipped=not result.success,
        seconds=time.perf_counter() - start,
        loss_scale=setup.optimizer.loss_scale,
        layer_losses=layer_losses,
        params_norm=(
            setup.optimizer.params_norm()
            if setup.observer.wants_params_norm(state.iteration)
            else None
        ),
        optimizer_states=setup.observer.optimizer_states(state.iteration, setup.optimizer),
        max_attention_logit=setup.observer.max_attention_logit(),
        batch_size=batch_size,
        consumed_samples=state.consumed_train_samples,
        used_learning_rate=used_rate,
    )


def scale_gradients(models: Sequence[DistributedDataParallel], factor: float) -> None:
    """Multiply the reduced gradients this rank owns."""
    for model in models:
        for buffer in model.buffers:
            for shard in buffer.shards:
                scale_(shard.grads, factor)


def apply_schedule(setup: TrainingSetup) -> None:
    """Give every parameter group the learning rate and weight decay of the coming step."""
    config, schedule = setup.config.optimizer_config, setup.scheduler
    decoupled = None
    if config.decoupled_lr is not None:
        decoupled = schedule.get_lr(max_lr=config.decoupled_lr, min_lr=config.decoupled_min_lr)
    setup.optimizer.set_schedule(
        schedule.get_lr(),
        schedule.get_wd(),
        decoupled,
        lambda mult: schedule.get_lr(
            max_lr=mult * schedule.schedule.max_lr, min_lr=mult * schedule.schedule.min_lr
        ),
    )


def mean_losses(reports: Sequence[dict[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Sum over all micro-batches and data parallel ranks, divided by the sum of the counts.

    Only the last pipeline stage has reports; the others get its result.

    Parallelism: collective over the ranks of a pipeline, and of a stage.
    """
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    means: dict[str, float] = {}
    if pipeline.rank == pipeline.size - 1:
        means = _mean_of_reports(reports)
    return (
        means if pipeline.size == 1 else comm.broadcast_object(means, pipeline.ranks[-1], pipeline)
    )


def _mean_of_reports(reports: Sequence[dict[str, tuple[Any, Any]]]) -> dict[str, float]:
    names = list(reports[0])
    totals = np.array(
        [
            [sum(float(report[name][part]) for report in reports) for part in (0, 1)]
            for name in names
        ],
        np.float32,
    )
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size > 1:
        totals = np.ascontiguousarray(totals)
        comm.all_reduce(memory.from_numpy(totals), group=group)
    return {
        name: float(total) / max(float(count), 1.0)
        for name, (total, count) in zip(names, totals, strict=True)
    }


def evaluate(setup: TrainingSetup, data: EvaluationSet) -> dict[str, float]:
    """Mean losses over the micro-batches of one evaluation, without gradients or dropout."""
    for model in setup.model:
        model.module.set_train(False)
    per_step = max(1, get_num_microbatches())
    if len(setup.model) > 1:  # chunks take turns in groups, which have to be complete
        per_step = data.num_microbatches
    reports: list[dict[str, tuple[Any, Any]]] = []
    is_shown = comm.get_rank() == 0
    with (
        autograd.no_grad(),
        bars.bar("evaluating", data.num_microbatches, "batch", is_shown=is_shown) as progress,
    ):
        for first in range(0, data.num_microbatches, per_step):
            reports += get_forward_backward_func()(
                forward_step_func=setup.forward_step,
                data_iterator=data.iterator,
                model=setup.model,
                num_microbatches=min(per_step, data.num_microbatches - first),
                micro_batch_size=setup.config.evaluation_micro_batch_size,
                forward_only=True,
            )
            progress.update(min(per_step, data.num_microbatches - first))
    for model in setup.model:
        model.module.set_train(True)
    return mean_losses(reports)


def evaluate_and_print_results(
    setup: TrainingSetup, sets: Sequence[EvaluationSet], prefix: str, split: str = "validation"
) -> list[dict[str, float]]:
    """Evaluate each set and print Megatron's validation lines on the last rank.

    Args:
        setup: the run.
        sets: what is evaluated.
        prefix: where the run stands, for the lines.
        split: ``validation`` or ``test``, for the curves.

    Returns:
        For each set its losses by name, means over all tokens.
    """
    results = []
    for data in sets:
        with timed("evaluate", 0):
            results.append(evaluate(setup, data))
        setup.observer.print_timers("evaluate")
        for line in validation_lines(prefix, results[-1], data.suffix):
            print_rank_last(line)
    suffixes = [data.suffix for data in sets]
    setup.observer.after_validation(list(zip(suffixes, results, strict=True)), setup.state, split)
    return results


def validate(
    setup: TrainingSetup, sets: Sequence[EvaluationSet], prefix: str
) -> list[dict[str, float]]:
    """Evaluate the validation sets, whose next evaluation goes on behind this one."""
    results = evaluate_and_print_results(setup, sets, prefix)
    training = setup.config.training_config
    if results and not training.full_validation:
        batch = setup.config.evaluation_batch_size(comm.get_world_size())
        setup.state.consumed_valid_samples += training.eval_iters * batch
    return results


class IntervalLog:
    """Collects step reports and prints one line per ``log_interval``."""

    def __init__(self, setup: TrainingSetup) -> None:
        self._setup = setup
        self._interval = setup.config.training_config.log_interval or 1
        self._reports: list[StepReport] = []
        self._energy = EnergyLog() if setup.config.training_config.log_energy else None

    def begin_step(self) -> None:
        """A step begins, which ``add`` ends."""
        if self._energy is not None:
            self._energy.start_step()

    def add(self, report: StepReport, data: EndlessLoader | SharedLoader) -> IntervalReport | None:
        """Take a report; at the end of an interval print the line on the last rank.

        Returns:
            What the line says; None within an interval.
        """
        self._reports.append(report)
        if self._energy is not None:
            self._energy.end_step()
        if report.iteration % self._interval:
            return None
        line_data = self._summary(data)
        style = self._setup.config.training_config.log_style
        if style == "megatron":
            print_rank_last(megatron_line(line_data, datetime.now()))
        elif style == "short":
            print_rank_last(short_line(line_data, self._setup.config.model_config.seq_length))
        else:
            print_rank_last(guide_line(line_data))
        if self._setup.config.moe_config.moe_per_layer_logging:
            for line in layer_loss_lines(report.iteration, report.layer_losses):
                print_rank_last(line)
        self._reports = []
        return line_data

    def _summary(self, data: EndlessLoader | SharedLoader) -> IntervalReport:
        setup, reports = self._setup, self._reports
        training, last = setup.config.training_config, reports[-1]
        seconds = math.fsum(report.seconds for report in reports) / len(reports)
        kept = [report for report in reports if not report.skipped]
        losses = _mean_over_steps(kept)
        nan = sum(any(math.isnan(value) for value in report.losses.values()) for report in reports)
        batch = get_current_running_global_batch_size()
        microbatches = get_num_microbatches()
        return IntervalReport(
            iteration=last.iteration,
            train_iters=setup.train_iters,
            consumed_samples=setup.state.consumed_train_samples,
            seconds_per_iteration=seconds,
            learning_rate=last.learning_rate,
            global_batch_size=batch,
            losses=losses,
            true_loss=_mean_over_steps(reports).get("lm loss"),
            loss_scale=last.loss_scale,
            grad_norm=last.grad_norm,
            num_zeros=last.num_zeros,
            params_norm=last.params_norm,
            max_attention_logit=last.max_attention_logit,
            joules_per_rank=None if self._energy is None else self._energy.lap(len(reports)),
            tflops_per_rank=(
                tflops_per_rank(setup.config.model_config, batch, seconds, comm.get_world_size())
                if training.log_throughput
                else None
            ),
            skipped_iterations=len(reports) - len(kept),
            nan_iterations=nan,
            epoch=data.epoch,
            step_in_epoch=data.batches_in_epoch // microbatches,
        )


def _mean_over_steps(reports: Sequence[StepReport]) -> dict[str, float]:
    return {
        name: math.fsum(report.losses[name] for report in reports) / len(reports)
        for name in (reports[0].losses if reports else ())
    }
