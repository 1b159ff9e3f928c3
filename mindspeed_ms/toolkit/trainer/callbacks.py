# SPDX-License-Identifier: Apache-2.0
"""What happens between steps besides training: callbacks of both kinds.

``TrainerCallback`` is told of events and may set switches of ``TrainerControl``; a MindSpore
``Callback`` gets its run context. Every rank calls its callbacks.

Source: transformers 5 ``trainer_callback.py`` and MindSpore's ``train.callback`` (names, meanings).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from mindspore.train import (
    Callback,
    LearningRateScheduler,
    ReduceLROnPlateau,
    RunContext,
    SummaryCollector,
)

from mindspeed_ms.files.regular_file import read_json
from mindspeed_ms.files.whole import write_text
from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.attribute_dict import AttributeDict
from mindspeed_ms.toolkit.given import shown
from mindspeed_ms.toolkit.trainer.arguments import TrainingArguments

NEVER_CALLED = (
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_substep_end",
    "on_prediction_step",
)
"""Events of ``transformers`` within a step, which is one call here."""
_RATE = "there is no optimizer of MindSpore's; TrainingArguments say the rate: lr_scheduler_type"
_REFUSED: tuple[tuple[type, str], ...] = (
    (LearningRateScheduler, _RATE),
    (ReduceLROnPlateau, _RATE),
    (SummaryCollector, 'there is no graph of MindSpore\'s; report_to="tensorboard" keeps curves'),
)
"""Callbacks of MindSpore that need what is not there."""


@dataclass
class TrainerState:
    """Where training stands."""

    epoch: float = 0.0
    """Passes over the training data."""
    global_step: int = 0
    max_steps: int = 0
    num_train_epochs: float = 0.0
    logging_steps: int = 1
    eval_steps: int = 0
    save_steps: int = 0
    train_batch_size: int = 0
    """Sequences of a micro-batch on one rank."""
    total_flos: float = 0.0
    log_history: list[dict[str, float]] = field(default_factory=list)
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True

    def save_to_json(self, json_path: str | PathLike[str]) -> None:
        """Write it to a file."""
        text = json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)
        write_text(Path(hub.checked_name(json_path)), f"{text}\n")

    @classmethod
    def load_from_json(cls, json_path: str | PathLike[str]) -> TrainerState:
        """Read it from a file; keys of other versions are left out.

        Raises:
            ValueError: it holds no JSON object, or values of other kinds than a trainer writes.
        """
        path = Path(hub.checked_name(json_path))
        values, known = read_json(path), {item.name for item in dataclasses.fields(cls)}
        for name in known & values.keys():
            if not _fits(name, values[name], getattr(cls, name, 0)):
                raise ValueError(
                    f"{path}: {name} is {values[name]!r:.60}, which no trainer writes; correct it, "
                    "or move the file away to go on without the history of the run"
                )
        return cls(**{name: value for name, value in values.items() if name in known})


_FREE = ("best_metric", "best_global_step", "best_model_checkpoint", "epoch", "train_batch_size")
"""What may be None."""
_MOST = 1e300


def _fits(name: str, value: Any, usual: Any) -> bool:
    """Whether a value of a state's file is of the kind that its field has."""
    if name == "log_history":
        return isinstance(value, list) and all(
            isinstance(one, dict) and _is_number(one.get("step")) for one in value
        )
    if name in _FREE and value is None:
        return True
    if name == "best_model_checkpoint":
        return isinstance(value, str)
    if isinstance(usual, bool):
        return isinstance(value, bool)
    return _is_number(value) or (name == "best_metric" and isinstance(value, float))


def _is_number(value: Any) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) < _MOST  # false of what is no number


@dataclass
class TrainerControl:
    """Switches that callbacks set; what is asked for happens after the present step."""

    should_training_stop: bool = False
    should_epoch_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False


class TrainerCallback:
    """Told of what happens; each method may change ``control``, or return another one.

    Keywords of all: ``model``, ``train_dataloader``, ``eval_dataloader``, ``processing_class``;
    of ``on_log`` ``logs`` too, and of ``on_evaluate`` ``metrics``.
    """

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """The trainer is made."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Training begins."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """It is over."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A pass over the data begins."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """It is over."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A step begins."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """It is over."""

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Figures are logged."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """An evaluation is over."""

    def on_predict(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Texts were generated."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """A checkpoint is written."""


class EarlyStoppingCallback(TrainerCallback):
    """End training when the metric of evaluations gets no better.

    Args:
        early_stopping_patience: evaluations without improvement that end it.
        early_stopping_threshold: smaller improvements are none.
    """

    def __init__(
        self, early_stopping_patience: int = 1, early_stopping_threshold: float = 0.0
    ) -> None:
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_threshold = early_stopping_threshold
        self.early_stopping_patience_counter = 0
        self._best: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Needs evaluations.

        Raises:
            ValueError: there are none.
        """
        if args.strategy("eval") == "no":
            raise ValueError("EarlyStoppingCallback needs evaluations; set eval_strategy")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Compare, and stop."""
        value = (metrics or {})[metric_name(args)]
        sign = 1.0 if args.greater_is_better else -1.0
        gain = math.inf if self._best is None else sign * (value - self._best)
        if gain > self.early_stopping_threshold:
            self._best, self.early_stopping_patience_counter = value, 0
        else:
            self.early_stopping_patience_counter += 1
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


def metric_name(args: TrainingArguments) -> str:
    """Key of ``metrics`` by which the best model is told."""
    return f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"


class CallbackParameters(AttributeDict):
    """What a MindSpore callback reads of the run, as keys and as attributes."""


class MindSporeCallbacks(TrainerCallback):
    """Tells MindSpore callbacks of a run.

    Args:
        callbacks: of MindSpore's kind.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = list(callbacks)
        self._parameters = CallbackParameters()
        self._context = RunContext(self._parameters)

    def _tell(self, event: str, state: TrainerState, control: TrainerControl) -> None:
        per_epoch = max(1, round(state.max_steps / max(state.num_train_epochs, 1e-9)))
        steps = max(state.global_step, 1)
        self._parameters.update(
            cur_step_num=state.global_step,
            cur_epoch_num=(steps - 1) // per_epoch + 1,
            batch_num=per_epoch,
            epoch_num=math.ceil(state.num_train_epochs),
            list_callback=self._callbacks,
            mode="train",
        )
        for callback in self._callbacks:
            getattr(callback, event)(self._context)
        control.should_training_stop |= bool(self._context.get_stop_requested())

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """``on_train_begin`` (``begin``)."""
        self._parameters.update(
            train_network=kwargs.get("model"),
            network=kwargs.get("model"),
            batch_size=state.train_batch_size,
            dataset_sink_mode=False,
        )
        self._tell("on_train_begin", state, control)

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """``on_train_epoch_begin`` (``epoch_begin``)."""
        self._tell("on_train_epoch_begin", state, control)

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """``on_train_step_begin`` (``step_begin``)."""
        self._tell("on_train_step_begin", state, control)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """``on_train_step_end`` (``step_end``), with the loss as ``net_outputs``."""
        self._parameters["net_outputs"] = kwargs.get("loss")
        self._tell("on_train_step_end", state, control)

    def on_epoch_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """``on_train_epoch_end`` (``epoch_end``)."""
        self._tell("on_train_epoch_end", state, control)

    def on_train_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """``on_train_end`` (``end``)."""
        self._tell("on_train_end", state, control)


class CallbackHandler:
    """The callbacks of a trainer, in their order.

    Args:
        callbacks: of both kinds; classes are called without arguments.
    """

    def __init__(self, callbacks: Iterable[Any] = ()) -> None:
        self.callbacks: list[Any] = []
        for callback in callbacks:
            self.add(callback)

    def add(self, callback: Any) -> None:
        """Add one of either kind.

        Raises:
            TypeError: it is neither.
            ValueError: one of MindSpore's that needs what is not there.
        """
        callback = callback() if isinstance(callback, type) else callback
        for kind, reason in _REFUSED:
            if isinstance(callback, kind):
                raise ValueError(f"callback {type(callback).__name__}: {reason}")
        if isinstance(callback, Callback):
            callback = MindSporeCallbacks([callback])
        if not any(hasattr(callback, name) for name in vars(TrainerCallback) if name[:3] == "on_"):
            raise TypeError(
                f"{shown(callback)} is no callback; give a TrainerCallback, or a mindspore.Callback"
            )
        self.callbacks.append(callback)

    def pop(self, callback: Any) -> Any:
        """Take out the first one of that class, or this very one; None if there is none."""
        for own in self.callbacks:
            if own is callback or (isinstance(callback, type) and isinstance(own, callback)):
                self.callbacks.remove(own)
                return own
        return None

    @property
    def have_a_say(self) -> bool:
        """Whether callbacks may set switches, on some ranks only."""
        return bool(self.callbacks)

    def never_called(self) -> list[str]:
        """Events that a callback waits for in vain, one line each."""
        return [
            f"{type(one).__name__}.{event} is never called: a step is one call here"
            for one in self.callbacks
            for event in NEVER_CALLED
            if _is_overridden(one, event)
        ]

    def tell(
        self,
        event: str,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **more: Any,
    ) -> TrainerControl:
        """Call a method of all; return the switches."""
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            changed = None if method is None else method(args, state, control, **more)
            if isinstance(changed, TrainerControl):
                control = changed
        return control


def _is_overridden(callback: Any, event: str) -> bool:
    method = getattr(type(callback), event, None)
    module = getattr(method, "__module__", "") or ""
    return method is not None and not module.startswith("transformers")
