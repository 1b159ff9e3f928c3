# SPDX-License-Identifier: Apache-2.0
"""``TrainingArguments``: how to train, by MindFormers' and ``transformers``' names.

Source: MindFormers r0.3 and r1.0, transformers 5 (names, meanings and defaults).
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

import numpy as np

from mindspeed_ms.config.coercion import UnfitError, coerce, wrong_value
from mindspeed_ms.toolkit.given import shown
from mindspeed_ms.toolkit.mapping.arguments import ROWS, Arguments, Inert, Refused, map_arguments
from mindspeed_ms.toolkit.messages import unknown_argument

STRATEGIES = ("no", "steps", "epoch")
_RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "lr_end": "min_lr",
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
}
"""Another name of an argument, older or newer."""


@dataclass(kw_only=True)
class _Fields:
    """Arguments that change something; ``TrainingArguments`` takes the others of ``ROWS``, too."""

    output_dir: str | None = "./output"
    """Folder of checkpoints and logs."""
    seed: int = 42
    """Start of all random streams: initial weights, dropout, order of the data."""
    use_parallel: bool | None = None
    """Several ranks share the work. None: if there are several."""

    num_train_epochs: float = 3.0
    """Passes over the training data."""
    max_steps: int = -1
    """Steps instead of passes; -1: passes count."""
    batch_size: int | None = None
    """Sequences of a micro-batch on one rank. None: ``per_device_train_batch_size``, or 8."""
    per_device_train_batch_size: int | None = None
    """The same by the name of ``transformers``."""
    per_device_eval_batch_size: int | None = None
    """Sequences of a micro-batch in evaluation. None, or any: that of training."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of a step whose gradients are added up."""

    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    """linear, cosine, constant, inverse_sqrt, polynomial (of power 1), cosine_with_min_lr or
    warmup_stable_decay, with or without warm-up."""
    lr_scheduler_kwargs: dict[str, Any] | None = None
    """Of these: min_lr or lr_end; num_decay_steps and decay_type of warmup_stable_decay."""
    warmup_steps: float = 0
    """Steps in which the rate rises; below 1 a share of all steps."""
    warmup_ratio: float | None = None
    """Share of all steps in which it rises; wins over ``warmup_steps``."""
    min_lr: float | None = None
    """Where it ends. None: 0, and 1e-7 of a polynomial, as in ``transformers``."""
    optim: str = "adamw"
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """Largest norm of all gradients; 0: they are not clipped."""

    fp16: bool = False
    bf16: bool = False
    gradient_checkpointing: bool | None = False
    """Recompute whole layers in backward; ``set_recompute_config`` says more."""
    full_determinism: bool = False
    use_cpu: bool = False

    logging_strategy: str = "steps"
    """no, steps or epoch."""
    logging_steps: float = 1
    """Steps between log lines; below 1 a share of all steps."""
    logging_first_step: bool = False
    logging_dir: str | None = None
    """Folder of TensorBoard files. None: ``runs`` below ``output_dir``."""
    log_style: str | None = None
    """``megatron``, or ``mindformers`` for MindFormers' line besides. None: so in a script that
    imports ``mindformers``."""
    report_to: str | tuple[str, ...] | None = "none"
    """none, tensorboard, wandb, or several of them."""
    run_name: str | None = None
    """Name of the run there."""
    disable_tqdm: bool | None = None
    """No progress bar. None: there is one on a terminal."""

    do_train: bool = False
    do_eval: bool = False
    """Evaluate while training: each epoch, unless the strategy says more."""
    do_predict: bool = False
    eval_strategy: str = "no"
    """no, steps or epoch."""
    eval_steps: float | None = None
    """Steps between evaluations. None: ``logging_steps``."""
    eval_step_interval: int | None = None
    """The same by the name of MindFormers."""
    eval_epoch_interval: int | None = None
    """Passes between evaluations."""
    eval_delay: float = 0
    """Steps, or passes, before the first evaluation."""
    eval_on_start: bool = False

    save_strategy: str = "steps"
    """no, steps, epoch or best."""
    save_steps: float = 500
    save_total_limit: int | None = 5
    """Checkpoints kept; None: all. The best one stays besides."""
    save_only_model: bool = False
    """Leave the optimizer state out: such a run cannot be resumed."""
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    """loss or PPL. None: loss."""
    greater_is_better: bool | None = None
    """None: less is better."""
    resume_from_checkpoint: str | bool | None = None
    """Go on with the run of this folder; True: of ``output_dir``."""
    resume_training: str | bool | None = None
    """The same by the name of MindFormers."""
    ignore_data_skip: bool = False
    """A resumed run starts its data at the beginning."""

    dataloader_num_workers: int | None = None
    dataloader_drop_last: bool = True
    train_sampling_strategy: str = "random"
    """random or sequential, for rows that are numbered; a MindSpore dataset keeps its order."""
    max_length: int | None = None
    """Tokens of a sequence, if not as many as the model has positions."""
    packing: bool = False
    """Several records share a sample, and each sees itself only."""
    assistant_only_loss: bool = True
    """Of conversations and answers, learn what the assistant says."""
    neftune_noise_alpha: float | None = None
    label_smoothing_factor: float = 0.0
    """Share of the target's weight that is spread over all tokens."""

    sink_mode: bool = False
    sink_size: int = 1
    profile: bool = False


_DEFAULTS = {item.name: item.default for item in dataclasses.fields(_Fields)}
_HINTS: Mapping[str, Any] = MappingProxyType(typing.get_type_hints(_Fields))


def _coerced(name: str, value: Any) -> Any:
    """A value as the annotation of its field wants it; an enumeration's or a path's as text.

    Raises:
        ValueError: it is of another kind.
    """
    if isinstance(value, Enum):
        value = value.value
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        raise ValueError(f"{name} is {shown(value)}, but no argument is an array; give its values")
    is_empty = isinstance(value, str | list | tuple) and not value
    if is_empty and name != "output_dir":  # transformers: none of them
        return _DEFAULTS[name]
    try:
        found = coerce(value, _HINTS[name])
    except UnfitError as unfit:
        raise wrong_value(name, value, _HINTS[name], unfit) from None
    return value if type(value) is int and found == value else found  # messages show it as given


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by one name each.

    Raises:
        ValueError: an argument by two names, with two values.
    """
    found = {name: value for name, value in given.items() if name not in _RENAMED}
    for old, new in _RENAMED.items():
        value = given.get(old)
        if value is None:
            continue
        if found.get(new) not in (None, value):
            raise ValueError(f"{old} is {value!r} and {new} {found[new]!r}; they are one, keep one")
        found[new] = value
    return found


class TrainingArguments(_Fields):
    """How to train.

    Args:
        output_dir: folder of checkpoints and logs.
        given: the fields above, and any further argument of MindFormers' or of ``transformers``'
            class of this name: one without effect is named in one line when training starts, one
            that asks for what is not there is refused.

    Raises:
        TypeError: an argument that neither has; names the near one.
        ValueError: a value that cannot be used, or one that is refused.
    """

    def __init__(self, output_dir: str | None = None, **given: Any) -> None:
        given = _renamed(given)
        for name in given:
            if name not in ROWS:
                raise TypeError(unknown_argument(type(self).__name__, name, ROWS))
        self.others = {name: value for name, value in given.items() if name not in _DEFAULTS}
        known = {name: value for name, value in given.items() if name in _DEFAULTS}
        if output_dir is not None:
            known["output_dir"] = output_dir
        super().__init__(**{name: _coerced(name, value) for name, value in known.items()})
        _check(self)
        self.mapped()  # refuses what cannot be

    def __getattr__(self, name: str) -> Any:
        others = self.__dict__.get("others", {})
        if name in others:
            return others[name]
        if isinstance(ROWS.get(name), Inert | Refused):
            return None
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    @property
    def train_batch_size(self) -> int:
        """Sequences of a micro-batch on one rank."""
        return self.batch_size or self.per_device_train_batch_size or 8

    def to_dict(self) -> dict[str, Any]:
        """All arguments by name."""
        return {**dataclasses.asdict(self), **self.others}

    def to_json_string(self) -> str:
        """The same, as JSON."""
        return json.dumps(self.to_dict(), indent=2, default=str)

    def mapped(self) -> Arguments:
        """Keys of a configuration in MindFormers' style, and what the trainer reads itself.

        Raises:
            ValueError: an argument is refused, or two say the same differently.
        """
        return map_arguments(self._translated())

    def _translated(self) -> dict[str, Any]:
        values = self.to_dict()
        if values["batch_size"] is None and values["per_device_train_batch_size"] is None:
            values["batch_size"] = 8
        shape = dict(values["lr_scheduler_kwargs"] or {})
        if values["lr_scheduler_type"] == "warmup_stable_decay":
            shape.setdefault("decay_type", "cosine")
        values["lr_scheduler_kwargs"] = shape
        if values["min_lr"] is None and not {"min_lr", "lr_end"} & shape.keys():
            values["min_lr"] = 1e-7 if values["lr_scheduler_type"] == "polynomial" else 0.0
        if 0 < values["warmup_steps"] < 1:
            values["warmup_ratio"] = values["warmup_ratio"] or values["warmup_steps"]
            values["warmup_steps"] = 0
        elif values["warmup_ratio"]:
            values["warmup_steps"] = 0
        # The trainer itself evaluates, saves and logs, as its strategies say.
        for name in ("eval_steps", "eval_step_interval", "eval_epoch_interval", "do_eval"):
            values.pop(name)
        for name in ("save_steps", "logging_steps", "per_device_eval_batch_size"):
            values.pop(name)
        limit = values.pop("save_total_limit")
        return {**values, "save_total_limit": 0 if limit is None else limit}

    def interval(self, kind: str, steps: int) -> int | None:
        """Steps between two events of a kind, ``logging``, ``eval`` or ``save``; None: by passes.

        Args:
            kind: of event.
            steps: those of the whole run, of which an interval below 1 is a share.
        """
        if self.strategy(kind) != "steps":
            return None
        if kind == "eval":
            asked = self.eval_steps or self.eval_step_interval or self.logging_steps
        else:
            asked = self.save_steps if kind == "save" else self.logging_steps
        return max(1, int(asked if asked >= 1 else steps * asked + 0.999999))

    def strategy(self, kind: str) -> str:
        """``no``, ``steps``, ``epoch`` or ``best``, for a kind of event."""
        chosen = str(getattr(self, f"{kind}_strategy")).lower()
        if kind == "eval" and chosen == "no":
            if self.eval_steps or self.eval_step_interval:
                return "steps" if self.do_eval else "no"
            return "epoch" if self.do_eval or self.eval_epoch_interval else "no"
        return chosen


def _check(arguments: TrainingArguments) -> None:
    """Refuse values of the trainer's own arguments that cannot be used."""
    for kind in ("logging", "eval", "save"):
        name = f"{kind}_strategy"
        value = getattr(arguments, name).lower()
        known = (*STRATEGIES, "best") if kind == "save" else STRATEGIES
        if value not in known:
            raise ValueError(f"{name} is {value!r}; use {', '.join(known)}")
        setattr(arguments, name, value)
    above_0 = ("logging_steps", "save_steps", "eval_steps", "eval_step_interval", "max_length")
    for name in (*above_0, "eval_delay", "neftune_noise_alpha", "dataloader_num_workers"):
        value, least = getattr(arguments, name), "above 0" if name in above_0 else "of at least 0"
        if value is not None and (value < 0 or (value == 0 and name in above_0)):
            raise ValueError(f"{name} is {value!r}, but must be a number {least}")
    if arguments.num_train_epochs <= 0 and arguments.max_steps <= 0:
        raise ValueError(
            f"num_train_epochs is {arguments.num_train_epochs!r}, but must be a number above 0, or "
            "give max_steps"
        )
    if arguments.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError(
            f"train_sampling_strategy is {arguments.train_sampling_strategy!r}; use random or "
            "sequential: all rows have one length"
        )
    if arguments.log_style not in (None, "megatron", "mindformers"):
        raise ValueError(f"log_style is {arguments.log_style!r}; use megatron or mindformers")
    if arguments.fp16 and arguments.bf16:
        raise ValueError("fp16 and bf16 are both True; keep one")
    _check_best(arguments)
    reporters(arguments)


def _check_best(arguments: TrainingArguments) -> None:
    metric = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    if metric not in ("loss", "PPL"):
        raise ValueError(
            f"metric_for_best_model is {arguments.metric_for_best_model!r}; there are loss and PPL"
        )
    if not arguments.load_best_model_at_end:
        return
    evaluated, saved = arguments.strategy("eval"), arguments.strategy("save")
    if evaluated == "no" or saved not in (evaluated, "best"):
        raise ValueError(
            f"load_best_model_at_end needs a checkpoint of every evaluation, but eval_strategy is "
            f"{evaluated} and save_strategy {saved}; make them the same"
        )
    if saved == "steps":
        every, between = arguments.interval("eval", 1), arguments.interval("save", 1)
        if every and between and between % every:
            raise ValueError(
                f"load_best_model_at_end: save_steps {between} is no multiple of eval_steps {every}"
            )


def reporters(arguments: TrainingArguments) -> tuple[str, ...]:
    """What ``report_to`` names, without ``none``.

    Raises:
        ValueError: a service that is not served.
    """
    given = arguments.report_to
    names = [given] if isinstance(given, str) else list(given or ())
    for name in names:
        if name not in ("none", "all", "tensorboard", "wandb"):
            raise ValueError(f"report_to names {name!r}; there are none, tensorboard and wandb")
    if "all" in names:
        return ("tensorboard",)
    return tuple(name for name in names if name != "none")
