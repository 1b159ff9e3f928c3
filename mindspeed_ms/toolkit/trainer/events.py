# SPDX-License-Identifier: Apache-2.0
"""What a trainer does between two steps of a run: log, evaluate, save, stop; and tell callbacks."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import comm
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.engine.run import Run
from mindspeed_ms.engine.step_report import StepReport
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.toolkit.trainer.arguments import TrainingArguments
from mindspeed_ms.toolkit.trainer.callbacks import (
    CallbackHandler,
    TrainerControl,
    TrainerState,
    metric_name,
)

STATE = "trainer_state.json"
_LARGEST_EXPONENT = 700.0


def metrics_of(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """``loss``, the mean over all tokens, and ``PPL``, its exponential, of an evaluation.

    Raises:
        ValueError: nothing was evaluated.
    """
    if not losses:
        raise ValueError("there is nothing to evaluate; give eval_dataset")
    loss = float(losses[0]["lm loss"])
    return {"loss": loss, "PPL": math.exp(loss) if loss < _LARGEST_EXPONENT else math.inf}


class Events:
    """The events of one training run.

    Args:
        args: strategies.
        handler: the callbacks.
        state: where training stands; changed here.
        samples_per_pass: sequences of one pass over the training data; None: unknown.
        may_evaluate: whether there is something to evaluate.

    Parallelism: called by every rank after every step, in the same order.
    """

    def __init__(
        self,
        args: TrainingArguments,
        handler: CallbackHandler,
        state: TrainerState,
        samples_per_pass: int | None,
        may_evaluate: bool,
    ) -> None:
        self.args, self.handler, self.state = args, handler, state
        self.control = TrainerControl()
        self.run: Run | None = None
        self._per_pass = samples_per_pass
        self._may_evaluate = may_evaluate
        self._losses: list[float] = []
        self._all_losses: list[float] = []
        self._saved = 0
        self._is_told = False
        self._start = time.perf_counter()
        self._first_sample = 0

    def _totals(self, run: Run) -> dict[str, float]:
        """Mean loss of all steps, time, and work in a second."""
        losses, seconds = self._all_losses, time.perf_counter() - self._start
        samples = run.state.consumed_train_samples - self._first_sample
        return {
            "train_runtime": seconds,
            "train_samples_per_second": samples / seconds,
            "train_steps_per_second": len(losses) / seconds,
            "train_loss": math.fsum(losses) / len(losses) if losses else math.nan,
        }

    def tell(self, event: str, **more: Any) -> None:
        """Call the callbacks."""
        model = self.run.model[0].module if self.run is not None and self.run.model else None
        self.control = self.handler.tell(
            event, self.args, self.state, self.control, model=model, **more
        )

    def begin(self, run: Run) -> None:
        """Before the first step."""
        self.run = run
        self._first_sample = run.state.consumed_train_samples
        self.state.global_step = run.state.iteration
        self.state.epoch = self._passes(run.state.consumed_train_samples)
        self._load_state(run)
        self.tell("on_train_begin")
        if self.args.eval_on_start and self._may_evaluate:
            self._evaluate()
        if self.state.global_step < self.state.max_steps:
            self.tell("on_epoch_begin")
            self.tell("on_step_begin")

    def __call__(self, report: StepReport) -> str | None:
        """After a step: why training ends now, None if it goes on."""
        assert self.run is not None, "begun"
        before = self.state.epoch
        self.state.global_step = report.iteration
        self.state.epoch = self._passes(report.consumed_samples)
        loss = report.losses.get("lm loss", math.nan)
        self._losses.append(loss)
        self._all_losses.append(loss)
        self.tell("on_step_end", loss=loss)
        is_last = report.iteration >= self.state.max_steps
        self._ask("steps", is_last)
        self._follow(report)
        is_over = math.floor(self.state.epoch + 1e-9) > math.floor(before + 1e-9)
        if is_over or is_last or self.control.should_epoch_stop:
            self.tell("on_epoch_end")
            self._ask("epoch", is_last)
            self._follow(report)
        if self.control.should_training_stop or self.control.should_epoch_stop:
            self._save()
            return f"training is stopped by a callback at iteration {report.iteration}"
        if not is_last:
            if is_over:
                self.tell("on_epoch_begin")
            self.tell("on_step_begin")
        return None

    def _passes(self, consumed: int) -> float:
        if self._per_pass:
            return consumed / self._per_pass
        return self.state.num_train_epochs * self.state.global_step / max(self.state.max_steps, 1)

    def _ask(self, kind: str, is_last: bool) -> None:
        """Set the switches that the strategies of a kind, steps or epoch, turn on now."""
        args, step = self.args, self.state.global_step
        is_first = step == 1 and args.logging_first_step
        for event, switch in (("logging", "log"), ("eval", "evaluate"), ("save", "save")):
            if args.strategy(event) != kind:
                continue
            every = args.interval(event, self.state.max_steps)
            is_due = every is None or step % every == 0
            if event == "eval":
                position = step if kind == "steps" else self.state.epoch
                is_due &= position >= args.eval_delay
                if kind == "epoch" and args.eval_epoch_interval:
                    is_due &= round(self.state.epoch) % args.eval_epoch_interval == 0 or is_last
            elif event == "save":
                is_due |= is_last
            if is_due:
                setattr(self.control, f"should_{switch}", True)
        if is_first and kind == "steps" and args.strategy("logging") != "no":
            self.control.should_log = True

    def _follow(self, report: StepReport) -> None:
        """Do what the switches say, on all ranks what one of them says."""
        control = self.control
        if comm.get_world_size() > 1 and self.handler.have_a_say:
            names = list(vars(control))
            everyones = comm.all_gather_object([getattr(control, name) for name in names])
            for name, values in zip(names, zip(*everyones, strict=True), strict=True):
                setattr(control, name, any(values))
        if control.should_log:
            control.should_log = False
            self._log(report)
        if control.should_evaluate:
            control.should_evaluate = False
            if self._may_evaluate:
                self._evaluate()
        control = self.control
        if control.should_save:
            control.should_save = False
            if self.args.strategy("save") == "no" and not self._is_told:
                self._is_told = True
                print_rank_0("should_save: no effect with save_strategy no; choose another one")
            self._save()

    def log(self, logs: Mapping[str, float]) -> None:
        """Note figures, and tell them."""
        entry = {**logs, "epoch": self.state.epoch, "step": self.state.global_step}
        self.state.log_history.append(entry)
        self.tell("on_log", logs=dict(entry))

    def _log(self, report: StepReport) -> None:
        if not self._losses:
            return
        loss = math.fsum(self._losses) / len(self._losses)
        if _wants_mindformers_line(self.args):
            print_rank_0(mindformers_line(self.state, report, loss))
        self._losses = []
        logs = {"loss": loss, "learning_rate": report.used_learning_rate}
        if report.grad_norm is not None:
            logs["grad_norm"] = report.grad_norm
        self.log(logs)

    def _evaluate(self) -> None:
        assert self.run is not None, "begun"
        found = metrics_of(self.run.evaluate())
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)
        metrics["epoch"] = self.state.epoch
        self._note_best(metrics)
        self.tell("on_evaluate", metrics=metrics)

    def _note_best(self, metrics: Mapping[str, float]) -> None:
        value, state = metrics[metric_name(self.args)], self.state
        is_better = state.best_metric is None or (
            value > state.best_metric if self.args.greater_is_better else value < state.best_metric
        )
        if not is_better or self.args.strategy("save") == "no":
            return
        state.best_metric, state.best_global_step = value, state.global_step
        state.best_model_checkpoint = str(self._folder(state.global_step))
        assert self.run is not None, "begun"
        self.run.keep(state.global_step)
        if self.args.strategy("save") == "best":
            self.control.should_save = True

    def _folder(self, iteration: int) -> Path:
        assert self.run is not None, "begun"
        return storage.iteration_folder(Path(self.run.config.training_config.output_dir), iteration)

    def _save(self) -> None:
        assert self.run is not None, "begun"
        if self.args.strategy("save") == "no" or self._saved == self.state.global_step:
            return
        self._saved = self.state.global_step
        self.run.save()
        if comm.get_rank() == 0:
            self.state.save_to_json(self._folder(self.state.global_step).parent / STATE)
        self.tell("on_save")

    def _load_state(self, run: Run) -> None:
        """Best metric and history of the run that goes on."""
        training = run.config.training_config
        file = Path(training.load_checkpoint) / STATE
        if not training.resume_training or not file.is_file():
            return
        earlier = TrainerState.load_from_json(file)
        state = self.state
        state.log_history = [one for one in earlier.log_history if one["step"] <= state.global_step]
        if (earlier.best_global_step or 0) <= state.global_step:
            state.best_metric = earlier.best_metric
            state.best_global_step = earlier.best_global_step
            state.best_model_checkpoint = earlier.best_model_checkpoint
            run.keep(state.best_global_step)

    def end(self) -> dict[str, float]:
        """After the last step: totals, and the best model's weights where they are asked for."""
        assert self.run is not None, "begun"
        totals = self._totals(self.run)
        self.log(totals)
        if not self.args.save_only_model and self.args.strategy("save") in ("steps", "epoch"):
            self._saved = self.state.global_step  # the engine has saved the last step
        best = self.state.best_global_step
        if self.args.load_best_model_at_end and best is not None:
            if best != self.state.global_step:
                self.run.load_weights(self.run.config.training_config.output_dir, best)
            print_rank_0(
                f"the best model is that of iteration {best}, {metric_name(self.args)} "
                f"{self.state.best_metric:.6E}"
            )
        self.tell("on_train_end")
        return {**totals, "epoch": self.state.epoch}


def _wants_mindformers_line(args: TrainingArguments) -> bool:
    if args.log_style is not None:
        return args.log_style == "mindformers"
    module = sys.modules.get("mindformers")
    return str(getattr(module, "__version__", "")).endswith("+mindspeed_ms")


def mindformers_line(state: TrainerState, report: StepReport, loss: float) -> str:
    """The log line of MindFormers."""
    epochs = max(1, math.ceil(state.num_train_epochs))
    per_epoch = max(1, round(state.max_steps / max(state.num_train_epochs, 1e-9)))
    step = report.iteration - 1
    return (
        f"{{ Epoch:[{step // per_epoch + 1:3d}/{epochs:3d}], "
        f"step:[{step % per_epoch + 1:5d}/{per_epoch:5d}], "
        f"loss:[{report.losses.get('lm loss', math.nan):5.3f}/{loss:5.3f}], "
        f"per_step_time: {report.seconds * 1000:.0f}ms, lr: {report.learning_rate}, "
        f"overflow cond: {report.skipped}, loss_scale: {report.loss_scale}"
    )
