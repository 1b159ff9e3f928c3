# SPDX-License-Identifier: Apache-2.0
"""``Trainer(args=...)`` given a file in MindFormers' style: what of it a trainer reads itself.

Source: MindFormers r0.3 to r1.0, whose ``args`` is a YAML file, ``MindFormerConfig``, or arguments.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeGuard

from mindspeed_ms.toolkit.mapping.training import map_callbacks
from mindspeed_ms.toolkit.mapping.tree import canonical
from mindspeed_ms.toolkit.trainer.arguments import TrainingArguments
from mindspeed_ms.toolkit.yaml_config import Tree, find_file, load_tree, merge_trees

_OF_CALLBACKS = {
    "log_interval": "logging_steps",
    "save_interval": "save_steps",
    "keep_checkpoint_max": "save_total_limit",
    "output_dir": "output_dir",
}
"""Field that a callback of the file sets -> argument."""
_OF_RUNNER = {
    "epochs": "num_train_epochs",
    "batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
}
_OF_FILE = (
    *("output_dir", "seed", "do_eval", "eval_step_interval", "eval_epoch_interval"),
    *("max_steps", "save_steps", "logging_steps", "save_total_limit", "resume_training"),
)
_READ_HERE = (
    "callbacks",
    "model",
    "trainer",
    "run_mode",
    "input_data",
    "pet_method",
    *_OF_FILE[2:],
)
"""Keys that are not part of the run's tree: the trainer sees to them."""


def is_file(args: Any) -> TypeGuard[str | os.PathLike[str] | Mapping[str, Any]]:
    """Whether a trainer's ``args`` are a whole file: its path, or its blocks."""
    if isinstance(args, str | os.PathLike):
        return True
    return isinstance(args, Mapping) and bool({"runner_config", "model", "context"} & args.keys())


def stands_first(given: Any) -> bool:
    """Whether a trainer's first argument is its ``args``, as in MindFormers' order."""
    if isinstance(given, str | os.PathLike):
        return os.fspath(given).endswith((".yaml", ".yml"))
    return isinstance(given, TrainingArguments) or is_file(given)


class FileSettings:
    """A file of settings.

    Args:
        given: a YAML file, whose ``base_config`` is read too, or its blocks.

    Raises:
        ValueError: the file cannot be read, or a value is of another kind.
    """

    def __init__(self, given: str | os.PathLike[str] | Mapping[str, Any]) -> None:
        if isinstance(given, str | os.PathLike):
            given = load_tree(find_file(os.fspath(given)))
        self.given: Tree = canonical(given)

    @property
    def tree(self) -> Tree:
        """What a run is made from."""
        return {key: value for key, value in self.given.items() if key not in _READ_HERE}

    @property
    def model(self) -> Mapping[str, Any] | None:
        """The block that describes the model; None if there is none."""
        return (self.given.get("model") or {}).get("model_config") or None

    @property
    def checkpoint(self) -> str:
        """Weights to start from; empty for none."""
        return str(self.given.get("load_checkpoint") or "")

    def data(self, kind: str) -> str | None:
        """Path of ``train`` or ``eval`` data; None if none is named."""
        block = self.given.get(f"{kind}_dataset") or {}
        loader = block.get("data_loader") or {}
        return loader.get("dataset_dir") or loader.get("dataset_files") or None

    def arguments(self) -> TrainingArguments:
        """What the trainer itself does: length, log, evaluation, checkpoints.

        Raises:
            ValueError: an unknown callback, or a value that cannot be used.
        """
        runner = self.given.get("runner_config") or {}
        fields = map_callbacks(self.given.get("callbacks") or []).sections.get(
            "training_config", {}
        )
        found = {name: fields[field] for field, name in _OF_CALLBACKS.items() if field in fields}
        found |= {name: runner[key] for key, name in _OF_RUNNER.items() if key in runner}
        found |= {name: self.given[name] for name in _OF_FILE if name in self.given}
        if "save_interval" not in fields and "save_steps" not in found:
            found["save_strategy"] = "no"  # nobody asked for checkpoints
        loader = (self.given.get("train_dataset") or {}).get("data_loader") or {}
        found["train_sampling_strategy"] = "random" if loader.get("shuffle") else "sequential"
        return TrainingArguments(**{name: value for name, value in found.items() if value})

    def merged(self, own: Mapping[str, Any]) -> Tree:
        """The tree with what the script says over it."""
        return merge_trees([self.tree, own])
