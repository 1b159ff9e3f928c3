# SPDX-License-Identifier: Apache-2.0
"""One task from a front door: from its sections to a run of the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mindspore.nn import Cell

from mindspeed_ms.backend import comm, script_context
from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import Sections, assemble
from mindspeed_ms.engine.output import print_rank_0, set_up_output
from mindspeed_ms.engine.run import Run, carry_out
from mindspeed_ms.engine.train_loop import TrainState
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.toolkit import hub
from mindspeed_ms.toolkit.data.local import count_sequences, find_data
from mindspeed_ms.toolkit.data.minddata import MicroBatches
from mindspeed_ms.toolkit.mapping.auto_layout import choose_layout
from mindspeed_ms.toolkit.mapping.parallel import ParallelMode
from mindspeed_ms.toolkit.mapping.tree import Task
from mindspeed_ms.toolkit.trainer.build import settle_warmup
from mindspeed_ms.toolkit.trainer.predicting import predict_task
from mindspeed_ms.training.teacher_description import with_teacher

ModelMaker = Callable[[AllConfig], Cell]
"""Configuration -> a whole model that returns its loss."""


def run_task(
    task: Task, model: ModelMaker | None = None, train_dataset: Iterable[Any] | None = None
) -> TrainState:
    """Train, finetune, evaluate, or go on with texts.

    Args:
        task: what to do.
        model: makes the user's own model; None for the model that the sections describe.
        train_dataset: the user's own batches of token rows, [b, s + 1]; None for the task's paths.

    Returns:
        Where the run stands at its end; its beginning, where texts were asked for.

    Raises:
        ValueError: settings or data that cannot be used, before any long work.

    Parallelism: called by every rank; collective.
    """
    lines = script_context.apply(
        {
            "device_target": task.device_target,
            "device_id": task.device_id,
            "max_device_memory": task.max_device_memory,
        }
    )
    comm.init_process_group()
    set_up_output()
    for line in (*task.notes, *lines):
        print_rank_0(line)
    if task.run_mode == "predict":
        predict_task(task)
        return TrainState()
    config = with_teacher(build_config(task, comm.get_world_size(), train_dataset))
    loader = None
    if train_dataset is not None:
        loader = MicroBatches(train_dataset, config, task.full_batch)
    return carry_out(Run(config, _provider(config, model), train_data_loader=loader))


def build_config(
    task: Task, world_size: int, train_dataset: Iterable[Any] | None = None
) -> AllConfig:
    """The configuration of a task, its layout and length decided.

    Raises:
        ValueError: no data, data that cannot be read, or a rule that is broken.
    """
    sections: Sections = {name: dict(values) for name, values in task.sections.items()}
    training = sections.setdefault("training_config", {})
    training.setdefault("log_style", "megatron")
    dataset = sections.setdefault("dataset_config", {})
    if task.checkpoint:
        training["load_checkpoint"] = _weights(task.checkpoint)
    needs_data = task.run_mode == "eval" or train_dataset is None
    if needs_data:
        _name_data(task, dataset, training)
    config = assemble(sections)
    if task.run_mode != "eval":
        readers = 1 if task.full_batch else config.parallel_config.data_parallel_size(world_size)
        per_pass = _num_sequences(train_dataset, config, readers)
        _set_length(task, per_pass, config.global_batch_size(world_size), training)
    for line in settle_warmup(sections):
        print_rank_0(line)
    config = assemble(sections)
    if task.parallel_mode is ParallelMode.AUTO_PARALLEL:
        config, line = choose_layout(config, world_size)
        print_rank_0(line)
    return config.validate(world_size)


def _weights(name: str) -> str:
    """A checkpoint's path; a name that is no path stands for a local folder."""
    if Path(name).exists():
        return name
    wanted = ("*.safetensors", "*.ckpt", "latest_checkpointed_iteration.txt")
    return str(hub.folder_of(name, wanted, "give load_checkpoint a file or a folder"))


def _name_data(task: Task, dataset: dict[str, Any], training: dict[str, Any]) -> None:
    """Paths of the task's data; an evaluation reads all of its data once."""
    is_evaluation = task.run_mode == "eval"
    wanted = task.eval_data if is_evaluation else task.train_data
    if not wanted:
        key = "eval" if is_evaluation else "train"
        raise ValueError(
            f"run_mode {task.run_mode} needs data; give {key}_dataset.data_loader.dataset_dir "
            f"({key}_data_path in the toolkit's file)"
        )
    if not is_evaluation:
        dataset["train_data_path"] = find_data(task.train_data, "training data")
    if task.eval_data and (is_evaluation or task.do_eval):
        dataset["valid_data_path"] = find_data(task.eval_data, "evaluation data")
        training["full_validation"] = True
    else:
        training["eval_iters"] = 0
    if is_evaluation:
        training |= {"skip_train": True, "training_iters": 1}  # schedules want a length


def _num_sequences(
    train_dataset: Iterable[Any] | None, config: AllConfig, readers: int
) -> int | None:
    """Sequences of one pass over the training data of all ranks; None if nobody knows."""
    if train_dataset is None:
        return count_sequences(config)
    if not (
        hasattr(train_dataset, "get_dataset_size") and hasattr(train_dataset, "get_batch_size")
    ):
        return None
    batches = int(train_dataset.get_dataset_size())
    return readers * batches * int(train_dataset.get_batch_size())


def _set_length(task: Task, per_pass: int | None, batch: int, training: dict[str, Any]) -> None:
    """Steps of the run, and of what is counted in passes over the data."""
    if task.num_samples is not None and per_pass is not None and task.num_samples < per_pass:
        per_pass = task.num_samples
        if (task.epochs or 1) > 1:
            raise ValueError(
                f"num_samples {per_pass} with {task.epochs} epochs would read other rows in each; "
                f"give one epoch, or a file of {per_pass} rows"
            )
    if per_pass is None and (task.max_steps is None or task.eval_epoch_interval):
        raise ValueError(
            "the length of the dataset is not known; give max_steps, and eval_step_interval "
            "instead of eval_epoch_interval"
        )
    steps = math.ceil((task.epochs or 1) * (per_pass or 0) / batch)
    training["training_iters"] = task.max_steps or steps
    if task.do_eval and task.eval_epoch_interval and per_pass is not None:
        interval = math.ceil(task.eval_epoch_interval * per_pass / batch)
        training.setdefault("eval_interval", interval)


def _provider(config: AllConfig, model: ModelMaker | None) -> Callable[..., Cell]:
    if model is None:
        return lambda pre_process=True, post_process=True: GPTModel(
            config.model_config, pre_process=pre_process, post_process=post_process
        )
    stages = config.parallel_config.pipeline_model_parallel_size
    if stages > 1:
        raise ValueError(
            f"a model of one's own is whole on every rank, but pipeline_stage is {stages}; set it "
            "to 1"
        )
    return lambda pre_process=True, post_process=True: model(config)
