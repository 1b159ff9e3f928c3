# SPDX-License-Identifier: Apache-2.0
"""From a trainer's settings to the configuration and the data of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import Sections
from mindspeed_ms.core import parallel_state
from mindspeed_ms.data.loader import SampleDataset
from mindspeed_ms.engine.datasets import train_valid_test_datasets_provider
from mindspeed_ms.formats import names
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.toolkit.data import minddata
from mindspeed_ms.toolkit.data.minddata import MicroBatches
from mindspeed_ms.toolkit.data.samples import FilledUp
from mindspeed_ms.toolkit.data.sources import MakeWriter, Source
from mindspeed_ms.toolkit.mapping.auto_layout import choose_layout
from mindspeed_ms.toolkit.mapping.parallel import ParallelMode
from mindspeed_ms.toolkit.mapping.tree import Task
from mindspeed_ms.toolkit.trainer.arguments import TrainingArguments, reporters
from mindspeed_ms.toolkit.trainer.model_source import ModelSource

_SHARED_BY = 8
"""Ranks that can share the embedding of a new model without further rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """All that a run is made from."""

    task: Task
    args: TrainingArguments
    model: ModelSource
    train: Source | None
    evaluation: Source | None
    write: MakeWriter
    weights: str = ""
    """What the model's weights are read from; empty: drawn at random."""
    extra: Mapping[str, Mapping[str, Any]] | None = None
    """Further fields by section."""


@dataclass(frozen=True, slots=True)
class Built:
    """A run that can be opened."""

    config: AllConfig
    provider: Callable[..., Any]
    datasets: Callable[..., Any]
    loader: MicroBatches | None
    samples_per_pass: int | None
    lines: tuple[str, ...]
    """What the user should know."""


def build(wanted: Wanted, world_size: int) -> Built:
    """Decide on layout, batch and length.

    Raises:
        ValueError: no data, data that does not fit, or a rule that is broken.

    Parallelism: collective over the world where data is a MindSpore dataset.
    """
    task = wanted.task
    sections: Sections = {name: dict(values) for name, values in task.sections.items()}
    for name, values in (wanted.extra or {}).items():
        sections.setdefault(name, {}).update(values)
    training = sections.setdefault("training_config", {})
    dataset = sections.setdefault("dataset_config", {})
    _name_weights(wanted, training)
    _data_fields(wanted, dataset, training)
    _pad_vocabulary(wanted, sections)
    own_rows = _rows_of_step(wanted, world_size, dataset, training)
    if own_rows is not None:
        dataset["batch_size"] = own_rows
    config = wanted.model.describe(sections)
    train = _numbered(wanted, config)
    per_pass = None
    if wanted.train is not None:
        is_all = train is not None or wanted.train.is_of_all_ranks(task.full_batch)
        readers = 1 if is_all else config.parallel_config.data_parallel_size(world_size)
        per_pass = wanted.train.num_sequences(config, readers, train)
        training["training_iters"] = steps_of(task, per_pass, config.global_batch_size(world_size))
    else:
        training |= {"skip_train": True, "training_iters": 1}  # schedules want a length
    _log_fields(wanted.args, training, per_pass, config.global_batch_size(world_size))
    lines = settle_warmup(sections)
    config = wanted.model.describe(sections)
    if task.parallel_mode is ParallelMode.AUTO_PARALLEL:
        config, line = choose_layout(config, world_size)
        lines.append(line)
    config = config.validate(world_size)
    loader = None
    if wanted.train is not None and wanted.train.batches is not None:
        batches = wanted.train.rows_of_tokens(config, wanted.write, packing=wanted.args.packing)
        loader = MicroBatches(batches, config, wanted.train.is_of_all_ranks(task.full_batch))
    return Built(
        config,
        wanted.model.provider(config),
        _Datasets(wanted, config, train),
        loader,
        per_pass,
        tuple(lines),
    )


def steps_of(task: Task, per_pass: int | None, batch: int) -> int:
    """Steps of a run.

    Raises:
        ValueError: nobody knows.
    """
    if task.max_steps:
        return int(task.max_steps)
    if per_pass is None:
        raise ValueError("the length of the training data is not known; give max_steps")
    return max(1, math.ceil((task.epochs or 1) * per_pass / batch))


def settle_warmup(sections: Sections) -> list[str]:
    """Round a share of the steps up; let a run end within a longer warm-up: as `transformers`.

    Returns:
        A line that says so, if a run trains.

    Raises:
        ValueError: a schedule that goes by the warm-up, and none.
    """
    optimizer = sections.setdefault("optimizer_config", {})
    training = sections.get("training_config", {})
    steps = training.get("training_iters") or 0
    decay = optimizer.get("lr_decay_iters") or steps
    if share := optimizer.pop("lr_warmup_fraction", None):
        optimizer["lr_warmup_iters"] = math.ceil(decay * share)
    warmup = optimizer.get("lr_warmup_iters") or 0
    if not warmup and optimizer.get("lr_decay_style") == "inverse-square-root":
        raise ValueError(
            "lr_scheduler_type inverse_sqrt falls by the length of the warm-up; give warmup_steps"
        )
    if warmup < decay:
        return []
    optimizer["lr_decay_iters"] = warmup + 1
    if training.get("skip_train"):
        return []
    return [f"warmup_steps {warmup} is not shorter than the run of {steps} steps, which ends in it"]


def _name_weights(wanted: Wanted, training: dict[str, Any]) -> None:
    if training.get("resume_training"):
        training["load_checkpoint"] = wanted.task.checkpoint
    elif wanted.weights:
        training |= {"load_checkpoint": wanted.weights, "finetune": True}


def _pad_vocabulary(wanted: Wanted, sections: Sections) -> None:
    """Rows of the embedding beyond the tokens, so that ranks can share it.

    Weights are drawn row by row, and rows beyond the tokens take part in the loss: a new model has
    as many in every layout, and a run that goes on as many as it began with.
    """
    source = wanted.model
    if source.is_own_cell or (wanted.weights and not source.is_in_memory):
        return
    tokens = int(source.instance.config.vocab_size)
    rows = -(-tokens // _SHARED_BY) * _SHARED_BY
    if source.is_in_memory:
        rows = source.instance.engine_config.model_config.vocab_size
    if wanted.task.sections["training_config"].get("resume_training"):
        rows = _stored_rows(wanted, tokens)
    if rows != tokens:
        sections.setdefault("model_config", {})["vocab_size"] = rows
        sections.setdefault("dataset_config", {})["vocab_size"] = tokens


def _stored_rows(wanted: Wanted, tokens: int) -> int:
    """Rows of the embedding in the checkpoint of the run that goes on."""
    found = find_checkpoint(Path(wanted.task.checkpoint))
    if found is None or found.kind != "mindspeed_ms":
        return tokens
    spec = gpt_spec(wanted.model.describe({}).model_config)
    stored = open_checkpoint(found, lambda common: spec).tensors.get(names.EMBEDDING)
    return tokens if stored is None else max(tokens, int(stored.shape[0]))


def _data_fields(wanted: Wanted, dataset: dict[str, Any], training: dict[str, Any]) -> None:
    train, evaluation, args = wanted.train, wanted.evaluation, wanted.args
    if train is not None and train.token_files:
        dataset["train_data_path"] = train.token_files
    if evaluation is not None and evaluation.token_files:
        dataset["valid_data_path"] = evaluation.token_files
    if evaluation is not None:
        training["full_validation"] = True
    else:
        training["eval_iters"] = 0
    is_numbered = train is not None and train.batches is None and not train.token_files
    if is_numbered and args.train_sampling_strategy == "random":
        # All ranks shuffle together, so that the order does not depend on their number.
        dataset |= {"dataloader_type": "cyclic", "data_sharding": False}
    if args.packing:
        dataset |= {"reset_attention_mask": True, "reset_position_ids": True}
    if not wanted.model.is_own_cell:
        training["calculate_per_token_loss"] = True
    training["label_smoothing"] = args.label_smoothing_factor
    if train is None and args.per_device_eval_batch_size:
        dataset["batch_size"] = args.per_device_eval_batch_size


def _rows_of_step(
    wanted: Wanted, world_size: int, dataset: dict[str, Any], training: dict[str, Any]
) -> int | None:
    """Rows of a micro-batch where a MindSpore dataset has batches of its own; None: as asked."""
    source = wanted.train.batches if wanted.train is not None else None
    if source is None or not minddata.is_minddata(source):
        return None
    rows = minddata.rows_per_batch(source)
    if rows is None:
        return None
    trial = {**dataset, "batch_size": 1}
    layout = wanted.model.describe({**wanted.task.sections, "dataset_config": trial})
    ranks = layout.parallel_config.data_parallel_size(world_size)
    micro_batches = layout.dataset_config.micro_batch_num // wanted.args.gradient_accumulation_steps
    parts = max(1, micro_batches) * (ranks if wanted.task.full_batch else 1)
    if rows % parts:
        what = f"{micro_batches} micro-batches"
        what += f" x data_parallel {ranks}" if wanted.task.full_batch else ""
        raise ValueError(
            f"the dataset yields batches of {rows} rows, which do not divide into {what} = {parts} "
            f"parts; batch it by a multiple of {parts}"
        )
    return rows // parts


def _log_fields(
    args: TrainingArguments, training: dict[str, Any], per_pass: int | None, batch: int
) -> None:
    """Log lines and curves, checkpoints, time limits."""
    steps = training["training_iters"]
    every = args.interval("logging", steps)
    if args.strategy("logging") == "no":
        every = steps + 1
    elif every is None:
        every = max(1, round((per_pass or steps) / batch))
    training |= {"log_style": "megatron", "log_interval": every}
    names = reporters(args)
    if "tensorboard" in names:
        training["tensorboard_dir"] = args.logging_dir or f"{training['output_dir']}/runs"
    if "wandb" in names:
        training |= {"wandb_project": "mindspeed_ms", "wandb_exp_name": args.run_name or "trainer"}
    training["save_checkpoints"] = args.strategy("save") != "no" and not training.get("skip_train")
    training["no_save_optim"] = args.save_only_model


def _numbered(wanted: Wanted, config: AllConfig) -> SampleDataset | None:
    """Training samples by number; None where the engine or a loader reads them."""
    train = wanted.train
    if train is None or train.token_files or train.batches is not None:
        return None
    return train.dataset(
        config, wanted.write, full_batch=wanted.task.full_batch, packing=wanted.args.packing
    )


class _Datasets:
    """The provider of a run's datasets, as Megatron calls it."""

    def __init__(self, wanted: Wanted, config: AllConfig, train: SampleDataset | None) -> None:
        self._wanted, self._config, self._train = wanted, config, train

    def __call__(self, num_samples: Any) -> tuple[Any, Any, Any]:
        """(train, validation, test) on this rank."""
        wanted = self._wanted
        train: Any = self._train
        valid: Any = None
        splits = [one for one in (wanted.train, wanted.evaluation) if one is not None]
        if any(one.token_files for one in splits):
            from_files = train_valid_test_datasets_provider(num_samples)
            train = train if train is not None else from_files[0]
            valid = from_files[1]
        if wanted.evaluation is not None and not wanted.evaluation.token_files:
            valid = wanted.evaluation.dataset(
                self._config,
                wanted.write,
                full_batch=wanted.task.full_batch or comm.get_world_size() == 1,
                packing=wanted.args.packing,
            )
        return train, filled(self._config, valid), None


def filled(config: AllConfig, dataset: SampleDataset | None) -> SampleDataset | None:
    """A dataset that micro-batches of all ranks divide, so that each sample is evaluated once."""
    if dataset is None:
        return None
    ranks = parallel_state.get_data_parallel_world_size()
    return FilledUp(dataset, config.evaluation_micro_batch_size * ranks)
