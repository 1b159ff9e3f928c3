# SPDX-License-Identifier: Apache-2.0
"""A whole configuration in MindFormers' style, and what it comes to: a task.

Source: MindFormers' YAML files and ``run_mindformer.py``, r0.3 to r1.0 (names and meanings).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mindspeed_ms.config.build import Sections
from mindspeed_ms.config.section import suggestion
from mindspeed_ms.toolkit.mapping import model as models
from mindspeed_ms.toolkit.mapping import training
from mindspeed_ms.toolkit.mapping.parallel import ALONE, ParallelMode, World, map_parallel
from mindspeed_ms.toolkit.mapping.recompute import map_recompute
from mindspeed_ms.toolkit.mapping.rows import (
    Inert,
    Joint,
    Mapped,
    Means,
    Refused,
    Table,
    To,
    apply,
    inert,
)

RunMode = Literal["train", "finetune", "eval", "predict"]

_GRAPHS = "there are no graphs to compile"
_DEVICE_TUNING = "it tunes kernels that are not used"
CONTEXT: Table = {
    "mode": Joint(),
    "device_target": Joint(),
    "device_id": Joint(),
    "max_device_memory": Joint(),
    "deterministic": Means(
        lambda value: {"parallel_config.deterministic_mode": str(value).upper() in ("ON", "TRUE")}
    ),
    **inert(
        (
            "enable_graph_kernel",
            "graph_kernel_flags",
            "max_call_depth",
            "save_graphs",
            "save_graphs_path",
            "jit_level",
            "jit_config",
            "jit_syntax_level",
            "memory_optimize_level",
            "mempool_block_size",
            "enable_compile_cache",
            "compile_cache_path",
            "exec_order",
            "pynative_synchronize",
            "runtime_num_threads",
            "infer_boost",
            "affinity_cpu_list",
        ),
        _GRAPHS,
        "./graph",
        10000,
    ),
    "ascend_config": Inert(_DEVICE_TUNING),
}
"""Keys of the block ``context``."""

MOE: Table = {
    "expert_num": To("moe_config.num_experts"),
    "capacity_factor": Joint(),
    "aux_loss_factor": Joint(),
    "num_experts_chosen": Joint(),
}
"""Keys of the block ``moe_config``."""

_LAYER_RATES = "all layers learn at one rate"
_LAYOUT_FREE = "every checkpoint is read, whatever its layout"
_CLOUD = "nothing is uploaded; copy output_dir"
_TUNING = "it tunes MindSpore's reading of records"

TABLE: Table = {
    "seed": To("training_config.seed"),
    "run_mode": Joint(),
    "output_dir": To("training_config.output_dir"),
    "load_checkpoint": Joint(),
    "resume_training": Joint(),
    "max_steps": Joint(),
    "save_steps": Joint(),
    "logging_steps": To("training_config.log_interval"),
    "save_total_limit": To("training_config.keep_checkpoint_max"),
    "use_parallel": Joint(),
    "do_eval": Joint(),
    "eval_step_interval": Joint(),
    "eval_epoch_interval": Joint(),
    "input_data": Joint(),
    "predict_batch_size": Joint(),
    "micro_batch_interleave_num": Joint(),
    "src_strategy_path_or_dir": Inert(_LAYOUT_FREE),
    "auto_trans_ckpt": Inert(_LAYOUT_FREE, (True,)),
    "transform_process_num": Inert(_LAYOUT_FREE, (1,)),
    "only_save_strategy": Refused("there are no strategy files; use auto_trans_ckpt"),
    "load_ckpt_format": Inert("a checkpoint tells its format", ("ckpt", "safetensors")),
    "ignore_data_skip": To("training_config.new_dataset"),
    "profile": To("training_config.profile"),
    "profile_start_step": To("training_config.profile_step_start"),
    "profile_stop_step": To("training_config.profile_step_end"),
    "profile_communication": Joint(),
    "profile_memory": Joint(),
    "init_start_profile": Inert("the profile begins with profile_start_step", (True,)),
    "remote_save_url": Inert(_CLOUD, ("Please input obs url on AICC platform.",)),
    "auto_tune": Inert(_TUNING, (True,)),
    "filepath_prefix": Inert(_TUNING, ("./autotune",)),
    "autotune_per_step": Inert(_TUNING, (10,)),
    "layer_scale": Refused(_LAYER_RATES),
    "layer_decay": Inert(_LAYER_RATES, (0.65,)),
    "lr_scale": Refused(_LAYER_RATES),
    "lr_scale_factor": Inert(_LAYER_RATES, (256,)),
    "context": CONTEXT,
    "parallel": Joint(),
    "parallel_config": Joint(),
    "moe_config": MOE,
    "recompute_config": Joint(),
    "runner_config": training.RUNNER,
    "runner_wrapper": Joint(),
    "optimizer": Joint(),
    "lr_schedule": Joint(),
    "train_dataset": Joint(),
    "train_dataset_task": Joint(),
    "eval_dataset": Joint(),
    "eval_dataset_task": Joint(),
    "model": {"model_config": Joint(), "arch": {"type": Joint()}},
    "trainer": {
        "type": Inert("there is one trainer", ("CausalLanguageModelingTrainer",)),
        "model_name": Joint(),
    },
    "callbacks": Joint(),
    "eval_callbacks": Inert("evaluation is logged", ([{"type": "ObsMonitor"}],)),
    "metric": Joint(),
    "processor": Joint(),
}
"""Keys of the whole file."""

ALIASES: Mapping[str, Mapping[str, str]] = {
    "model.model_config": models.ALIASES,
    "parallel_config": {
        "seq_parallel": "use_seq_parallel",
        "micro_batch_interleaved_num": "micro_batch_interleave_num",
    },
    "lr_schedule": {"end_learning_rate": "lr_end", "decay_steps": "total_steps"},
}
"""Section -> older key -> today's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a front door asks for, before anything is built."""

    run_mode: RunMode = "train"
    model_name: str = ""
    """A preset or a registered model; empty where ``sections`` describe the model."""
    sections: Sections = field(default_factory=dict)
    """Sections of our configuration, only what was given; ``config.build.assemble`` builds them."""
    parallel_mode: ParallelMode = ParallelMode.STAND_ALONE
    full_batch: bool = False
    """A dataset of the user's own yields the rows of all ranks. False: this rank's alone."""
    epochs: float | None = None
    """Passes over the training data. None: one."""
    max_steps: int | None = None
    """Steps, instead of passes. None: ``epochs`` says how long."""
    train_data: str = ""
    eval_data: str = ""
    num_samples: int | None = None
    """Rows of the data that are used. None: all."""
    predict_data: tuple[str, ...] = ()
    predict_batch_size: int | None = None
    checkpoint: str = ""
    """Weights to start from: a file, a folder or a model's name."""
    do_eval: bool = False
    """Evaluate while training; with ``eval_epoch_interval`` after so many passes."""
    eval_epoch_interval: int | None = None
    mode: int | None = None
    """MindSpore's execution mode that was asked for: 0 graph, 1 dynamic."""
    device_target: str | None = None
    device_id: int | None = None
    max_device_memory: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the model's configuration that say how to generate."""
    processor: Mapping[str, Any] = field(default_factory=dict)
    """Block of the same name: what texts go through before the model."""
    notes: tuple[str, ...] = ()
    """What the user should know, one line each."""


def canonical(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with older keys under today's names, so that layers meet key by key.

    Raises:
        ValueError: a key is given under two names.
    """
    return _canonical(tree, "")


def _canonical(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    names = ALIASES.get(where, {})
    for key, value in tree.items():
        name = names.get(key, key)
        if name in renamed and renamed[name] != value:
            raise ValueError(f"{where} gives {name} under two names, one is {key}; keep {name}")
        below = f"{where}.{key}" if where else str(key)
        renamed[name] = _canonical(value, below) if isinstance(value, Mapping) else value
    return renamed


def read_task(tree: Mapping[str, Any], world: World = ALONE) -> Task:
    """Translate a whole configuration.

    Args:
        tree: the merged file, by today's names (see ``canonical``).
        world: the ranks there are.

    Raises:
        ValueError: an unknown key, a value of another type, or settings that contradict each other.
    """
    mapped = apply(tree, TABLE)
    joint = mapped.joint
    layout = _map_layout(mapped, joint, world)
    tensor = mapped.get("parallel_config.tensor_model_parallel_size", 1)
    described = _map_model(joint, tensor)
    for part in (
        described,
        map_recompute(
            _block(joint, "recompute_config"),
            sequence_parallel=bool(mapped.get("parallel_config.sequence_parallel")),
        ),
        training.map_wrapper(_block(joint, "runner_wrapper")),
        training.map_optimizer(_block(joint, "optimizer")),
        training.map_schedule(_block(joint, "lr_schedule")),
        training.map_callbacks(joint.get("callbacks") or []),
    ):
        kept, part.joint = part.joint, {}
        mapped.add(part)
        if part is described:
            generation = kept
    for name in ("train_dataset_task", "eval_dataset_task"):
        # It repeats the dataset's block, whose keys flags may have changed since: that one counts.
        apply(_block(joint, name), training.DATASET_TASK, name)
    train = training.map_dataset(_block(joint, "train_dataset"), "train_dataset")
    evaluation = training.map_dataset(_block(joint, "eval_dataset"), "eval_dataset")
    data = {"train": train.joint, "eval": evaluation.joint}
    train.joint, evaluation.joint = {}, {}
    mapped.add(train)
    mapped.add(Mapped(inert=evaluation.inert, lines=evaluation.lines))
    _batch(mapped, joint, data["train"].get("batch_size"))
    _moe(mapped, joint)
    weights = generation.pop("checkpoint_name_or_path", "")
    checkpoint = _checkpoint(mapped, joint, str(joint.get("load_checkpoint") or weights or ""))
    _rest(mapped, joint)
    return Task(
        run_mode=_run_mode(joint.get("run_mode", "train")),
        model_name=str(joint.get("trainer.model_name", "")),
        sections=mapped.sections,
        parallel_mode=layout["parallel_mode"],
        full_batch=layout["full_batch"],
        epochs=_positive(joint, "runner_config.epochs"),
        max_steps=_positive(joint, "max_steps"),
        train_data=str(data["train"].get("path", "")),
        eval_data=str(data["eval"].get("path", "")),
        num_samples=data["train"].get("num_samples"),
        predict_data=_texts(joint.get("input_data")),
        predict_batch_size=_positive(joint, "predict_batch_size"),
        checkpoint=checkpoint,
        do_eval=bool(joint.get("do_eval", False)),
        eval_epoch_interval=_positive(joint, "eval_epoch_interval"),
        mode=_mode(joint.get("context.mode")),
        device_target=_target(joint.get("context.device_target")),
        device_id=joint.get("context.device_id"),
        max_device_memory=joint.get("context.max_device_memory"),
        generation=generation,
        processor=_block(joint, "processor"),
        notes=tuple(mapped.notes()),
    )


def _block(joint: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    block = joint.get(key)
    if block is None:
        return {}
    if not isinstance(block, Mapping):
        raise ValueError(
            f"{key} is {block!r}, but must hold key: value pairs; indent its keys below it"
        )
    return block


def _map_layout(mapped: Mapped, joint: Mapping[str, Any], world: World) -> Mapping[str, Any]:
    """Parallel sizes; ``use_parallel: False`` is one rank alone."""
    context = dict(_block(joint, "parallel"))
    config = dict(_block(joint, "parallel_config"))
    if joint.get("micro_batch_interleave_num") is not None:
        config.setdefault("micro_batch_interleave_num", joint["micro_batch_interleave_num"])
    if joint.get("use_parallel") is False:
        context = {"parallel_mode": ParallelMode.STAND_ALONE.value}
        if world.size > 1:
            raise ValueError(
                f"use_parallel is False, but there are {world.size} ranks; set it to True, or "
                "start one"
            )
    part = map_parallel(config, context, world)
    layout, part.joint = part.joint, {}
    mapped.add(part)
    return layout


def _map_model(joint: Mapping[str, Any], tensor_parallel: int) -> Mapped:
    config = dict(_block(joint, "model.model_config"))
    arch = joint.get("model.arch.type")
    if arch is not None:
        if arch not in models.ARCHITECTURES:
            near = suggestion(str(arch), models.ARCHITECTURES)
            near = near or f"; there are {', '.join(models.ARCHITECTURES)}"
            raise ValueError(f"model.arch.type {arch!r} is unknown{near}")
        kind = config.setdefault("type", models.ARCHITECTURES[arch]) if config else None
        if kind is not None and kind != models.ARCHITECTURES[arch]:
            raise ValueError(
                f"model.arch {arch} takes a {models.ARCHITECTURES[arch]}, but "
                f"model.model_config.type is {kind}; correct one of them"
            )
    return models.map_model(config, tensor_parallel) if config else Mapped()


def _batch(mapped: Mapped, joint: Mapping[str, Any], of_dataset: object) -> None:
    """Micro-batches of a step: those of the pipeline, times the accumulation."""
    steps = _positive(joint, "runner_config.gradient_accumulation_steps") or 1
    count = mapped.get("dataset_config.micro_batch_num", 1)
    if steps > 1:
        mapped.put({"dataset_config.micro_batch_num": count * steps})
    if of_dataset is not None and mapped.get("dataset_config.batch_size") is None:
        mapped.put({"dataset_config.batch_size": of_dataset})


def _moe(mapped: Mapped, joint: Mapping[str, Any]) -> None:
    if mapped.get("moe_config.num_experts", 1) < 2:
        return
    names = {
        "capacity_factor": "moe_config.moe_expert_capacity_factor",
        "aux_loss_factor": "moe_config.moe_aux_loss_coeff",
        "num_experts_chosen": "moe_config.moe_router_topk",
    }
    given = {
        names[key]: joint[f"moe_config.{key}"] for key in names if f"moe_config.{key}" in joint
    }
    mapped.put(given)
    if given.get("moe_config.moe_aux_loss_coeff"):
        mapped.put({"moe_config.moe_router_load_balancing_type": "aux_loss"})


def _checkpoint(mapped: Mapped, joint: Mapping[str, Any], given: str) -> str:
    """What to load: a run to go on with, or weights alone, counted from iteration 0.

    Raises:
        ValueError: finetuning without weights.
    """
    resume = joint.get("resume_training") or False
    mapped.put({"training_config.resume_training": bool(resume)})
    if resume:
        named = resume if isinstance(resume, str) else given
        return named or str(mapped.get("training_config.output_dir", "./output"))
    if joint.get("run_mode") == "finetune":
        if not given:
            raise ValueError("run_mode finetune starts from weights; give load_checkpoint")
        mapped.put({"training_config.finetune": True})
    return given


def _rest(mapped: Mapped, joint: Mapping[str, Any]) -> None:
    save = _positive(joint, "save_steps")
    if save:
        mapped.put({"training_config.save_interval": save})
    interval = _positive(joint, "eval_step_interval")
    if joint.get("do_eval") and interval:
        mapped.put({"training_config.eval_interval": interval})
    if mapped.get("training_config.profile"):
        for key in ("profile_communication", "profile_memory"):
            if key in joint:
                mapped.put({f"training_config.{key}": joint[key]})
    kind = _metric(joint.get("metric"))
    if kind not in (None, "PerplexityMetric"):
        raise ValueError(f"metric {kind!r} is unknown; there is PerplexityMetric")
    if joint.get("context.mode") == 0:
        mapped.lines.append("graph mode is not used: mindspeed_ms runs MindSpore's dynamic graph")


def _metric(metric: object) -> object:
    if isinstance(metric, list) and len(metric) == 1:
        metric = metric[0]
    return metric.get("type") if isinstance(metric, Mapping) else metric


def _mode(value: object) -> Any:  # noqa: ANN401
    if value not in (None, 0, 1, "0", "1", "GRAPH_MODE", "PYNATIVE_MODE"):
        raise ValueError(f"mode is {value!r}, but must be 0 (graph) or 1 (dynamic graph)")
    return value


def _target(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"device_target is {value!r}, but must be a text, Ascend or CPU")
    return value


def _run_mode(value: object) -> RunMode:
    known = get_args(RunMode)
    if value not in known:
        raise ValueError(
            f"run_mode {value!r}: use {', '.join(known)}{suggestion(str(value), known)}"
        )
    return value  # type: ignore[return-value]


def _positive(joint: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401
    value = joint.get(key)
    if value in (None, -1):
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ValueError(f"{key} is {value!r}, but must be a number above 0")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) else tuple(map(str, value))  # type: ignore[call-overload]
