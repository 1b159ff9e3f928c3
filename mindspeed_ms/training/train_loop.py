"""The training loop: steps, evaluation, and what is printed about them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.config import AllConfig
from mindspeed_ms.core.distributed import DistributedDataParallel, finalize_model_grads
from mindspeed_ms.core.num_microbatches_calculator import (
    get_current_global_batch_size,
    get_num_microbatches,
    update_num_microbatches,
)
from mindspeed_ms.core.optimizer import MegatronOptimizer, OptimizerParamScheduler
from mindspeed_ms.core.pipeline_parallel import get_forward_backward_func
from mindspeed_ms.training.data import EndlessLoader
from mindspeed_ms.training.flops import tflops_per_rank
from mindspeed_ms.training.log_lines import (
    IntervalReport,
    guide_line,
    megatron_line,
    validation_lines,
)
from mindspeed_ms.training.output import print_rank_last


@dataclass(slots=True)
class TrainState:
    """Where the run stands."""

    iteration: int = 0
    consumed_train_samples: int = 0


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one iteration did; losses are means over all micro-batches and data parallel ranks."""

    iteration: int
    losses: dict[str, float]
    grad_norm: float | None
    num_zeros: int | None
    learning_rate: float
    skipped: bool
    seconds: float


@dataclass(kw_only=True, slots=True)
class TrainingSetup:
    """All that the loop works with."""

    config: AllConfig
    model: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    forward_step: Callable
    train_iters: int
    state: TrainState = field(default_factory=TrainState)
    on_step: Callable[[StepReport], None] | None = None


def train(
    setup: TrainingSetup, data_iterator: EndlessLoader, valid_loader: Iterable | None = None
) -> None:
    """Iterate until ``train_iters``, printing and evaluating at the configured intervals."""
    training, state = setup.config.training_config, setup.state
    log = IntervalLog(setup)
    started = time.monotonic()
    while state.iteration < setup.train_iters:
        report = train_step(setup, data_iterator)
        log.add(report, data_iterator)
        if setup.on_step is not None:
            setup.on_step(report)
        if training.eval_interval and valid_loader is not None and training.eval_iters > 0:
            if state.iteration % training.eval_interval == 0:
                evaluate_and_print_results(setup, valid_loader, f"iteration {state.iteration}")
        if _must_exit(training, state.iteration, time.monotonic() - started):
            print_rank_last(f"exiting program at iteration {state.iteration}")
            return


def _must_exit(training: Any, iteration: int, seconds: float) -> bool:
    if training.exit_interval and iteration % training.exit_interval == 0:
        return True
    if training.exit_duration_in_mins is None:
        return False
    # Clocks differ between ranks; all must leave in the same iteration.
    minutes = max(comm.all_gather_object(seconds / 60.0))
    return minutes > training.exit_duration_in_mins


def train_step(setup: TrainingSetup, data_iterator: Iterator) -> StepReport:
    """Forward and backward of one global batch, and the optimizer step."""
    start = time.perf_counter()
    state, training = setup.state, setup.config.training_config
    update_num_microbatches(state.consumed_train_samples)
    batch_size = get_current_global_batch_size()
    for model in setup.model:
        model.zero_grad_buffer()
    reports = get_forward_backward_func()(
        forward_step_func=setup.forward_step,
        data_iterator=data_iterator,
        model=setup.model,
        num_microbatches=get_num_microbatches(),
    )
    losses = mean_losses(reports)
    if training.check_for_nan_in_loss_and_grad:
        _refuse_nan(losses, state.iteration + 1)
    finalize_model_grads(setup.model)
    apply_schedule(setup)
    result = setup.optimizer.step()
    if result.success:
        setup.scheduler.step(batch_size)
    state.iteration += 1
    state.consumed_train_samples += batch_size
    return StepReport(
        iteration=state.iteration,
        losses=losses,
        grad_norm=result.grad_norm,
        num_zeros=result.num_zeros_in_grad,
        learning_rate=setup.scheduler.get_lr(),
        skipped=not result.success,
        seconds=time.perf_counter() - start,
    )


def apply_schedule(setup: TrainingSetup) -> None:
    """Give every parameter group the learning rate and weight decay of the coming step."""
    config, schedule = setup.config.optimizer_config, setup.scheduler
    decoupled = None
    if config.decoupled_lr is not None:
        decoupled = schedule.get_lr(max_lr=config.decoupled_lr, min_lr=config.decoupled_min_lr)
    setup.optimizer.set_schedule(schedule.get_lr(), schedule.get_wd(), decoupled)


def mean_losses(reports: Sequence[dict[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Sum over all micro-batches and data parallel ranks, divided by the sum of the counts."""
    names = list(reports[0])
    totals = np.array(
        [[sum(float(report[name][part]) for report in reports) for part in (0, 1)] for name in names],
        np.float32,
    )
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size > 1:
        totals = np.ascontiguousarray(totals)
        comm.all_reduce(memory.from_numpy(totals), group=group)
    return {
        name: float(total) / float(count) for name, (total, count) in zip(names, totals, strict=True)
    }


def _refuse_nan(losses: dict[str, float], iteration: int) -> None:
    for name, value in losses.items():
        if not math.isfinite(value):
            raise RuntimeError(
                f"{name} is {value} on rank {comm.get_rank()} in iteration {iteration}; lower the "
                "learning rate, check the data, or pass --no-check-for-nan-in-loss-and-grad"
            )


def evaluate(setup: TrainingSetup, loader: Iterable) -> dict[str, float]:
    """Mean losses over ``eval_iters`` global batches, without gradients or dropout."""
    iterator = EndlessLoader(loader)
    for model in setup.model:
        model.module.set_train(False)
    reports: list[dict[str, tuple[Any, Any]]] = []
    with autograd.no_grad():
        for _ in range(setup.config.training_config.eval_iters):
            reports += get_forward_backward_func()(
                forward_step_func=setup.forward_step,
                data_iterator=iterator,
                model=setup.model,
                num_microbatches=get_num_microbatches(),
                forward_only=True,
            )
    for model in setup.model:
        model.module.set_train(True)
    return mean_losses(reports)


def evaluate_and_print_results(setup: TrainingSetup, loader: Iterable, prefix: str) -> None:
    """Evaluate and print Megatron's validation lines on the last rank."""
    for line in validation_lines(prefix, evaluate(setup, loader)):
        print_rank_last(line)


class IntervalLog:
    """Collects step reports and prints one line per ``log_interval``."""

    def __init__(self, setup: TrainingSetup) -> None:
        self._setup = setup
        self._interval = setup.config.training_config.log_interval or 1
        self._reports: list[StepReport] = []

    def add(self, report: StepReport, data: EndlessLoader) -> None:
        """Take a report; at the end of an interval print the line on the last rank."""
        self._reports.append(report)
        if report.iteration % self._interval:
            return
        line_data = self._summary(data)
        if self._setup.config.training_config.log_style == "guide":
            print_rank_last(guide_line(line_data))
        else:
            print_rank_last(megatron_line(line_data, datetime.now()))
        self._reports = []

    def _summary(self, data: EndlessLoader) -> IntervalReport:
        setup, reports = self._setup, self._reports
        training, last = setup.config.training_config, reports[-1]
        seconds = math.fsum(report.seconds for report in reports) / len(reports)
        kept = [report for report in reports if not report.skipped]
        losses = {
            name: math.fsum(report.losses[name] for report in kept) / len(kept)
            for name in (kept[0].losses if kept else ())
        }
        nan = sum(any(math.isnan(value) for value in report.losses.values()) for report in reports)
        batch = get_current_global_batch_size()
        microbatches = get_num_microbatches()
        return IntervalReport(
            iteration=last.iteration,
            train_iters=setup.train_iters,
            consumed_samples=setup.state.consumed_train_samples,
            seconds_per_iteration=seconds,
            learning_rate=last.learning_rate,
            global_batch_size=batch,
            losses=losses,
            loss_scale=1.0,
            grad_norm=last.grad_norm,
            num_zeros=last.num_zeros,
            params_norm=setup.optimizer.params_norm() if training.log_params_norm else None,
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
