# SPDX-License-Identifier: Apache-2.0
"""Length, optimizer, learning rate, loss scale, data, checkpoints and logging of a run.

Source: MindFormers' YAML files, r0.3 to r1.0 (names and meanings).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mindspeed_ms.config.section import suggestion, unknown_key
from mindspeed_ms.toolkit.mapping.rows import (
    Inert,
    Joint,
    Mapped,
    Means,
    Refused,
    Table,
    To,
    Values,
    apply,
    inert,
)

_SINK = "every step is launched by itself, and logged"
_POSITION = "where training goes on stands in the checkpoint"

RUNNER: Table = {
    "epochs": Joint(),
    "batch_size": To("dataset_config.batch_size"),
    "gradient_accumulation_steps": Joint(),
    "micro_batch_size": Inert("the batch of all ranks is cut as the layout says"),
    "sink_mode": Inert(_SINK),
    "sink_size": Inert(_SINK, (1,)),
    "sink_per_epoch": Inert(_SINK),
    "per_epoch_size": Inert(_SINK),
    "initial_epoch": Inert(_POSITION),
    "has_trained_epoches": Inert(_POSITION),
    "has_trained_steps": Inert(_POSITION),
    "image_size": Inert("there are no images", (224,)),
    "num_classes": Inert("there are no classes"),
}
"""Keys of the block ``runner_config``."""


# --- loss scale and clipping ----------------------------------------------------------------------


def _loss_scale(value: Any) -> Values:  # noqa: ANN401
    if not isinstance(value, bool) and isinstance(value, int | float):
        return {"training_config.loss_scale": float(value)}
    if not isinstance(value, Mapping):
        raise ValueError("must be a number, or a block with type and loss_scale_value")
    known = ("type", "loss_scale_value", "scale_factor", "scale_window")
    for key in value:
        if key not in known:
            raise unknown_key("scale_sense", str(key), known)
    kind = value.get("type", "DynamicLossScaleUpdateCell")
    first = value.get("loss_scale_value")
    if kind == "FixedLossScaleUpdateCell":
        return {"training_config.loss_scale": first}
    if kind not in ("DynamicLossScaleUpdateCell", "AdaptiveLossScaleUpdateCell"):
        raise ValueError("type must be DynamicLossScaleUpdateCell or FixedLossScaleUpdateCell")
    return {
        "training_config.loss_scale_value": first,
        "training_config.loss_scale_growth_factor": value.get("scale_factor"),
        "training_config.loss_scale_window": value.get("scale_window"),
    }


WRAPPER: Table = {
    "type": Inert("there is one training step", ("MFTrainOneStepCell", "TrainOneStepWithClipGN")),
    "scale_sense": Means(_loss_scale),
    "use_clip_grad": Joint(),
    "max_grad_norm": Joint(),
    "calculate_per_token_loss": To("training_config.calculate_per_token_loss"),
}
"""Keys of the block ``runner_wrapper``."""


def map_wrapper(config: Mapping[str, Any]) -> Mapped:
    """Translate ``runner_wrapper``: a dynamic or fixed loss scale, and gradient clipping.

    Raises:
        ValueError: an unknown key or kind of loss scale.
    """
    mapped = apply(config, WRAPPER, "runner_wrapper")
    norm = mapped.joint.pop("max_grad_norm", None)
    is_clipped = mapped.joint.pop("use_clip_grad", norm is not None)
    if config:
        mapped.put({"optimizer_config.clip_grad": (norm or 1.0) if is_clipped else 0.0})
    return mapped


# --- optimizer and learning rate ------------------------------------------------------------------

_NO_BIAS_CORRECTION = ("AdamWeightDecay", "FusedAdamWeightDecay", "FP32StateAdamWeightDecay")
_OPTIMIZERS = {
    **dict.fromkeys(_NO_BIAS_CORRECTION, "AdamW"),
    **dict.fromkeys(("AdamW", "adamw", "adam", "Adam", "FusedCastAdamWeightDecay"), "AdamW"),
    **dict.fromkeys(("adamw_hf", "adamw_torch", "adamw_torch_fused", "adamw_apex_fused"), "AdamW"),
    "adamw_torch_npu_fused": "AdamW",
    **dict.fromkeys(("SGD", "sgd"), "SGD"),
    **dict.fromkeys(("Lion", "lion", "lion_32bit"), "lion"),
}
OPTIMIZER: Table = {
    "type": Joint(),
    "beta1": Joint(),
    "beta2": Joint(),
    "betas": Joint(),
    "eps": To("optimizer_config.eps"),
    "weight_decay": To("optimizer_config.weight_decay"),
    "momentum": To("optimizer_config.sgd_momentum"),
    "learning_rate": Joint(),
    "loss_scale": Inert("runner_wrapper.scale_sense sets the loss scale", (1.0, 1)),
    "use_fused": Inert("the fastest kernel is taken", (True,)),
    "amsgrad": Refused("use AdamW without it"),
    "maximize": Refused("the loss is made smaller"),
    "swap": Refused("the optimizer state stays on the device"),
}
"""Keys of the block ``optimizer``."""


def _chosen(key: str, kind: object, names: Mapping[str, str]) -> str:
    if not isinstance(kind, str) or kind not in names:
        there_are = ", ".join(dict.fromkeys(names.values()))
        raise ValueError(f"{key} is {kind!r}; there are {there_are}{suggestion(str(kind), names)}")
    return names[kind]


def map_optimizer(config: Mapping[str, Any]) -> Mapped:
    """Translate ``optimizer``: AdamW, SGD or Lion.

    Raises:
        ValueError: an unknown key, or an optimizer that does not exist here.
    """
    mapped = apply(config, OPTIMIZER, "optimizer")
    joint = mapped.joint
    kind = joint.pop("type", None)
    if kind is not None:
        chosen = _chosen("optimizer.type", kind, _OPTIMIZERS)
        mapped.put({"optimizer_config.optimizer_type": chosen})
        if chosen == "SGD" and "momentum" not in config:  # Megatron's has 0.9
            mapped.put({"optimizer_config.sgd_momentum": 0.0})
        if kind in _NO_BIAS_CORRECTION:
            mapped.lines.append(
                f"optimizer {kind} is computed as AdamW, which corrects the bias of its moments"
            )
    betas = joint.pop("betas", None) or [0.9, 0.999]
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"optimizer.betas is {betas!r}, but must be two numbers")
    first, second = joint.pop("beta1", betas[0]), joint.pop("beta2", betas[1])
    if config.keys() & {"beta1", "beta2", "betas"}:
        mapped.put({"optimizer_config.betas": (first, second)})
    rate = joint.pop("learning_rate", None)
    if rate is not None:
        mapped.put({"optimizer_config.learning_rate": rate})
    return mapped


_RESTARTS = ("cosine_with_restarts", "CosineWithRestartsAndWarmUpLR")
"""Schedules whose ``num_cycles`` counts falls, not waves."""
_SCHEDULES = {
    **dict.fromkeys(("constant", "ConstantWarmUpLR", "constant_with_warmup"), "constant"),
    **dict.fromkeys(
        (
            "linear",
            "LinearWithWarmUpLR",
            "polynomial",
            "PolynomialWithWarmUpLR",
            "WarmUpDecayLR",
        ),
        "linear",
    ),
    **dict.fromkeys(("cosine", "CosineWithWarmUpLR", "cosine_with_min_lr", *_RESTARTS), "cosine"),
    **dict.fromkeys(("inverse_sqrt", "inverse-square-root"), "inverse-square-root"),
    **dict.fromkeys(("WSD", "WarmUpStableDecayLR", "warmup_stable_decay"), "WSD"),
}
SCHEDULE: Table = {
    "type": Joint(),
    "learning_rate": To("optimizer_config.learning_rate"),
    "lr_end": To("optimizer_config.min_lr"),
    "min_lr": To("optimizer_config.min_lr"),
    "warmup_steps": Joint(),
    "warmup_ratio": Joint(),
    "warmup_lr_init": To("optimizer_config.lr_warmup_init"),
    "total_steps": Joint(),
    "power": Joint(),
    "num_cycles": Joint(),
    "decay_start_steps": Refused("use lr_schedule type WSD with decay_steps"),
    "wsd_decay_steps": To("optimizer_config.lr_wsd_decay_iters"),
    "wsd_decay_style": To("optimizer_config.lr_wsd_decay_style"),
}
"""Keys of the block ``lr_schedule`` by today's names."""


def map_schedule(config: Mapping[str, Any]) -> Mapped:
    """Translate ``lr_schedule``.

    Raises:
        ValueError: an unknown key, or a shape that does not exist here.
    """
    mapped = apply(config, SCHEDULE, "lr_schedule")
    joint = mapped.joint
    kind, power = joint.pop("type", None), joint.pop("power", 1)
    once = 1 if kind in _RESTARTS else 0.5
    cycles = joint.pop("num_cycles", once)
    if kind is not None:
        chosen = _chosen("lr_schedule.type", kind, _SCHEDULES)
        mapped.put({"optimizer_config.lr_decay_style": chosen})
    if power != 1:
        raise ValueError(
            f"lr_schedule.power is {power}; a polynomial of power 1, a straight line, is the one "
            "there is: leave it out, or use cosine"
        )
    if cycles != once:
        raise ValueError(
            f"lr_schedule.num_cycles is {cycles}; the cosine falls once, half a cycle: leave it out"
        )
    steps = joint.pop("total_steps", None)
    if steps is not None and steps > 0:
        mapped.put({"optimizer_config.lr_decay_iters": steps})
    warmup, ratio = joint.pop("warmup_steps", None), joint.pop("warmup_ratio", None)
    if ratio:
        mapped.put({"optimizer_config.lr_warmup_fraction": ratio})
        if warmup:
            mapped.lines.append(
                f"lr_schedule gives warmup_ratio {ratio} and warmup_steps {warmup}: the ratio wins"
            )
    elif warmup is not None:
        mapped.put({"optimizer_config.lr_warmup_iters": warmup})
    return mapped


# --- data -----------------------------------------------------------------------------------------

_READING = "it tunes MindSpore's reading of records"
DATASET: Table = {
    "data_loader": {
        "type": Inert("the file's ending tells its kind", ("MindDataset",)),
        "dataset_dir": Joint(),
        "dataset_files": Joint(),
        "shuffle": Means(lambda value: _shuffle(value)),
        "num_samples": Joint(),
        "num_shards": Inert("the layout tells the shards"),
        "shard_id": Inert("the layout tells the shards"),
        "column_names": Inert("rows are read from the column input_ids", ("input_ids",)),
    },
    "tokenizer": Inert("rows are token ids already"),
    "input_columns": Inert("rows are read from the column input_ids", (["input_ids"],)),
    "output_columns": Inert("rows are read from the column input_ids", (["input_ids"],)),
    "num_parallel_workers": To("dataset_config.num_workers"),
    "drop_remainder": Joint(),
    "batch_size": Joint(),
    "repeat": Refused("runner_config.epochs says how often data are read", (1,)),
    "seed": Inert("the run's seed orders the data"),
    "eos_reset": Means(lambda value: _reset(value)),
    "eod_reset": Means(lambda value: _reset(value)),
    "python_multiprocessing": Inert(_READING),
    "numa_enable": Inert(_READING),
    "prefetch_size": Inert(_READING, (1,)),
    "auto_tune": Inert(_READING),
    "filepath_prefix": Inert(_READING, ("./autotune",)),
    "autotune_per_step": Inert(_READING, (10,)),
    "profile": Inert(_READING),
}
"""Keys of the blocks ``train_dataset`` and ``eval_dataset``."""

DATASET_TASK: Table = {
    "type": Inert(
        "rows are token ids of a causal language model",
        ("CausalLanguageModelDataset", "MaskLanguageModelDataset", "KeyWordGenDataset"),
    ),
    "dataset_config": DATASET,
}


def _shuffle(value: object) -> Values:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    if not value:
        return {}
    # All ranks shuffle together, so that the order does not depend on their number.
    return {"dataset_config.dataloader_type": "cyclic", "dataset_config.data_sharding": False}


def _reset(value: object) -> Values:
    return {
        "dataset_config.reset_position_ids": value,
        "dataset_config.reset_attention_mask": value,
    }


def map_dataset(config: Mapping[str, Any], name: str) -> Mapped:
    """Translate ``train_dataset`` or ``eval_dataset``.

    ``joint`` of the result: ``path``, ``num_samples`` and ``batch_size`` where given.

    Raises:
        ValueError: an unknown key.
    """
    mapped = apply(config, DATASET, name)
    joint = mapped.joint
    found: dict[str, Any] = {}
    path = joint.get("data_loader.dataset_dir") or joint.get("data_loader.dataset_files")
    if path:
        found["path"] = path
    if joint.get("batch_size") is not None:
        found["batch_size"] = joint["batch_size"]
    samples = joint.get("data_loader.num_samples")
    if samples not in (None, -1):
        found["num_samples"] = samples
    if name == "train_dataset" and "drop_remainder" in joint:
        mapped.put({"dataset_config.drop_remainder": joint["drop_remainder"]})
    mapped.joint = found
    return mapped


# --- callbacks ------------------------------------------------------------------------------------

_CHECKPOINT: Table = {
    "prefix": Inert("checkpoints are named by iteration and rank"),
    "save_checkpoint_steps": To("training_config.save_interval"),
    "keep_checkpoint_max": To("training_config.keep_checkpoint_max"),
    "async_save": To("training_config.async_save"),
    "directory": To("training_config.output_dir"),
    "save_checkpoint_seconds": Refused("save every so many steps, save_checkpoint_steps"),
    "keep_checkpoint_per_n_minutes": Refused("keep every so many steps, save_checkpoint_steps"),
    "integrated_save": Inert("every rank writes its part, and a load puts them together", (True,)),
    **inert(
        ("checkpoint_format", "save_network_params", "save_trainable_params", "remove_redundancy"),
        "checkpoints have one format",
        "ckpt",
        "safetensors",
    ),
    "exception_save": Inert("the newest checkpoint is whole, whatever happens"),
}
_CALLBACKS: Mapping[str, Table] = {
    "MFLossMonitor": {"per_print_times": To("training_config.log_interval")},
    "CheckpointMointor": _CHECKPOINT,
    "CheckpointMonitor": _CHECKPOINT,
    "ObsMonitor": inert(("local_path", "rank_id", "upload_frequence", "keep_last"), "no uploads"),
    "SummaryMonitor": inert(
        ("keep_default_action", "summary_dir", "collect_freq"), "no summary files", True
    ),
    "EvalCallBack": {"step_interval": To("training_config.eval_interval")},
    "ProfileMonitor": inert(("start_step", "stop_step", "output_path"), "see profile"),
}
"""Callbacks of MindFormers; the one of checkpoints by both its spellings."""


def map_callbacks(callbacks: object) -> Mapped:
    """Translate the list ``callbacks``: each item has a type, and options.

    Raises:
        ValueError: no list of blocks, an unknown callback or option.
    """
    mapped = Mapped()
    if not isinstance(callbacks, list) or not all(isinstance(one, Mapping) for one in callbacks):
        raise ValueError(f"callbacks is {callbacks!r}, but must list blocks, each with a type")
    for one in callbacks:
        kind = str(one.get("type"))
        if kind not in _CALLBACKS:
            near = suggestion(kind, _CALLBACKS) or f"; there are {', '.join(_CALLBACKS)}"
            raise ValueError(f"callback {kind!r} is unknown{near}")
        options = {key: value for key, value in one.items() if key != "type"}
        mapped.add(apply(options, _CALLBACKS[kind], f"callback {kind}"))
    return mapped
