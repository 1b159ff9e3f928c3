# SPDX-License-Identifier: Apache-2.0
"""Options of the ``transformer`` toolkit, as a configuration in MindFormers' style.

Source: the toolkit's documents and ``gpt_base.yaml`` (names and meanings).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_ms.config.section import unknown_key
from mindspeed_ms.toolkit.mapping import parallel
from mindspeed_ms.toolkit.mapping.parallel import ALONE, ParallelMode, World
from mindspeed_ms.toolkit.yaml_config import Options, merge_trees, parse_value, tree_of

Tree = dict[str, Any]

KEYS: Mapping[str, str] = {
    "seed": "seed",
    "parallel_mode": "parallel.parallel_mode",
    "full_batch": "parallel.full_batch",
    "device_num": "parallel.device_num",
    "device_target": "context.device_target",
    "device_id": "context.device_id",
    "mode": "context.mode",
    "epoch_size": "runner_config.epochs",
    "acc_step": "runner_config.gradient_accumulation_steps",
    "sink_size": "runner_config.sink_size",
    "train_data_path": "train_dataset.data_loader.dataset_dir",
    "data_url": "train_dataset.data_loader.dataset_dir",
    "eval_data_path": "eval_dataset.data_loader.dataset_dir",
    "shuffle": "train_dataset.data_loader.shuffle",
    "optimizer": "optimizer.type",
    "beta1": "optimizer.beta1",
    "beta2": "optimizer.beta2",
    "eps": "optimizer.eps",
    "weight_decay": "optimizer.weight_decay",
    "lr_schedule": "lr_schedule.type",
    "start_lr": "lr_schedule.learning_rate",
    "learning_rate": "lr_schedule.learning_rate",
    "end_lr": "lr_schedule.lr_end",
    "warmup_step": "lr_schedule.warmup_steps",
    "init_loss_scale_value": "runner_wrapper.scale_sense.loss_scale_value",
    "scale_factor": "runner_wrapper.scale_sense.scale_factor",
    "scale_window": "runner_wrapper.scale_sense.scale_window",
    "max_grad_norm": "runner_wrapper.max_grad_norm",
    "output_dir": "output_dir",
    "ckpt_save_dir": "output_dir",
    "load_checkpoint": "load_checkpoint",
    "resume_training": "resume_training",
    "auto_model": "trainer.model_name",
    "arch": "trainer.model_name",
    "run_mode": "run_mode",
    "max_steps": "max_steps",
    "save_steps": "save_steps",
    "log_interval": "logging_steps",
}
"""Key at the top of the toolkit's file -> key of MindFormers' style."""

SECTIONS: Mapping[str, str] = {
    "model": "model.model_config",
    "context": "context",
    "moe_config": "moe_config",
    "recompute_config": "recompute_config",
    "parallel_config": "parallel_config",
}
"""Section -> section of MindFormers' style."""

_SPEED_UP = {
    "micro_batch_num": "parallel_config.micro_batch_interleave_num",
    "flatten_weights": None,
    "fused_kernel": None,
}
_BATCH = ("batch_size", "global_batch_size")
_OWN = ("auto_dataset", "import_module")
"""Keys that ``run`` reads."""


def known_keys() -> set[str]:
    """All keys at the top of a toolkit file."""
    return {*KEYS, *SECTIONS, *_BATCH, *_OWN, "speed_up"}


def read_options(options: Options, world: World = ALONE) -> Tree:
    """The configuration in MindFormers' style that the options say.

    The batch is that of all ranks; it is cut as the layout says. Keys of the user's own are left
    out, unless the toolkit knows them although the file does not have them.

    Raises:
        ValueError: a key of the file that the toolkit does not have; a batch that does not divide.
    """
    values = options.to_dict()
    added = options.origin.added
    tree: Tree = {}
    for key, value in values.items():
        if key in added:
            continue
        if key not in known_keys():
            raise unknown_key(options.origin.file, key, known_keys())
        tree = merge_trees([tree, _translated(key, value)])
    for key, text in added.items():
        tree = merge_trees([tree, _translated(key, parse_value(text))])
    batch = _batch({**values, **{key: parse_value(text) for key, text in added.items()}})
    if batch is not None:
        size = _micro_batch(batch, tree, world)
        tree = merge_trees([tree, {"runner_config": {"batch_size": size}}])
    return tree


def _translated(key: str, value: object) -> Tree:
    if key in KEYS:
        return tree_of({KEYS[key]: value})
    if key == "model" and isinstance(value, Mapping):
        size = value.get("micro_batch_size")
        return {
            "model": {"model_config": {"type": "GPT2Config", **_model(value)}},
            "runner_config": {"micro_batch_size": size},
        }
    if key in SECTIONS and isinstance(value, Mapping):
        return tree_of({SECTIONS[key]: dict(value)})
    if key == "speed_up" and isinstance(value, Mapping):
        paths = {_SPEED_UP[name]: item for name, item in value.items() if _SPEED_UP.get(name)}
        return tree_of({path: item for path, item in paths.items() if path is not None})
    if key in SECTIONS:
        raise ValueError(f"{key} is {value!r}, but must hold key: value pairs; indent its keys")
    return {}


def _model(section: Mapping[str, Any]) -> Tree:
    """Keys of a model configuration; one rate of dropout serves everywhere."""
    keys = {
        key: value for key, value in section.items() if key not in (*_BATCH, "micro_batch_size")
    }
    rate = keys.pop("dropout_rate", None)
    if rate is not None:
        for name in ("embedding_dropout_prob", "hidden_dropout_rate", "attention_dropout_rate"):
            keys.setdefault(name, rate)
    return keys


def _batch(values: Mapping[str, Any]) -> int | None:
    """Sequences of a step on all ranks; older files have them in the model's section."""
    model = values.get("model")
    for source in (values, model if isinstance(model, Mapping) else {}):
        for name in reversed(_BATCH):
            size = source.get(name)
            if size is None:
                continue
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} is {size!r}, but must be a whole number of at least 1")
            return size
    return None


def _micro_batch(batch: int, tree: Tree, world: World) -> int:
    mode, _ = parallel.mode_of(tree.get("parallel", {}), world)
    sizes = parallel.read_sizes(tree.get("parallel_config", {}))
    if mode in (ParallelMode.STAND_ALONE, ParallelMode.DATA_PARALLEL):
        sizes = parallel.ParallelSizes()
    data_parallel = sizes.copies(mode, world.size)
    steps = tree.get("runner_config", {}).get("gradient_accumulation_steps") or 1
    return parallel.sequences_per_micro_batch(batch, sizes, data_parallel * steps)
