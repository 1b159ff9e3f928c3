# SPDX-License-Identifier: Apache-2.0
"""``TrainingArguments``, with MindFormers' and ``transformers``' names, as keys of the file.

Source: MindFormers r0.3 and r1.0, transformers 4 and 5 (names and meanings).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.section import suggestion
from mindspeed_ms.toolkit.mapping.rows import ASKS_NOTHING, Inert, Refused


@dataclass(frozen=True, slots=True)
class Path:
    """The argument is a key of the file."""

    name: str
    """Dotted."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The argument is several keys of the file, or needs another value there."""

    translate: Callable[[Any], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Own:
    """The trainer reads it itself."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What training arguments come to."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key of the file -> value."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """What the trainer reads itself."""
    notes: tuple[str, ...] = ()


def _dtype(name: str) -> Keys:
    return Keys(lambda value: {"model.model_config.compute_dtype": name} if value else {})


def _resume(value: object) -> Mapping[str, Any]:
    if isinstance(value, bool):
        return {"resume_training": value}
    return {"resume_training": True, "load_checkpoint": value} if value else {}


_SHAPES = {
    "min_lr": "lr_end",
    "lr_end": "lr_end",
    "power": "power",
    "num_cycles": "num_cycles",
    "num_decay_steps": "wsd_decay_steps",
    "decay_type": "wsd_decay_style",
}
"""Name in ``lr_scheduler_kwargs`` -> key of ``lr_schedule``."""


def _shape(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keys of ``lr_schedule`` for what ``lr_scheduler_kwargs`` says.

    Raises:
        ValueError: it says something else.
    """
    for name in value:
        if name not in _SHAPES:
            raise ValueError(
                f"TrainingArguments lr_scheduler_kwargs has {name!r}; there are "
                f"{', '.join(_SHAPES)}{suggestion(name, _SHAPES)}"
            )
    return {f"lr_schedule.{_SHAPES[name]}": item for name, item in value.items()}


_ONE_FORMAT = "every rank writes its part, and a load puts them together"
_POSITION = "where training goes on stands in the checkpoint"
_TOKENS = "every token of a step weighs the same"
_KERNELS = "the fastest kernel is taken"
_LOADING = "batches are read ahead by threads"
_REDUCTION = "gradients are reduced in buckets of one process group"
_NO_HUB = "nothing is uploaded"
_NO_TORCH = "there is no torch"
_SHARDS = "set_parallel_config shards the optimizer: optimizer_shard=True"
_SINK = "every step is launched by itself, and logged"

ROWS: Mapping[str, Path | Keys | Own | Inert | Refused] = MappingProxyType(
    {
        "output_dir": Path("output_dir"),
        "overwrite_output_dir": Inert("new checkpoints stand beside older ones"),
        "seed": Path("seed"),
        "data_seed": Inert("seed orders the data too"),
        "use_parallel": Path("use_parallel"),
        # length and batch
        "num_train_epochs": Path("runner_config.epochs"),
        "max_steps": Path("max_steps"),
        "batch_size": Path("runner_config.batch_size"),
        "per_device_train_batch_size": Path("runner_config.batch_size"),
        "per_device_eval_batch_size": Path("eval_dataset.batch_size"),
        "gradient_accumulation_steps": Path("runner_config.gradient_accumulation_steps"),
        "initial_epoch": Inert(_POSITION),
        # learning rate and optimizer
        "learning_rate": Path("lr_schedule.learning_rate"),
        "lr_scheduler_type": Path("lr_schedule.type"),
        "warmup_steps": Path("lr_schedule.warmup_steps"),
        "warmup_ratio": Path("lr_schedule.warmup_ratio"),
        "min_lr": Path("lr_schedule.lr_end"),
        "optim": Path("optimizer.type"),
        "weight_decay": Path("optimizer.weight_decay"),
        "adam_beta1": Path("optimizer.beta1"),
        "adam_beta2": Path("optimizer.beta2"),
        "adam_epsilon": Path("optimizer.eps"),
        "max_grad_norm": Keys(
            lambda value: {
                "runner_wrapper.use_clip_grad": value > 0,
                "runner_wrapper.max_grad_norm": value,
            }
        ),
        # precision and memory
        "fp16": _dtype("float16"),
        "bf16": _dtype("bfloat16"),
        "gradient_checkpointing": Path("recompute_config.recompute"),
        # logging, evaluation, checkpoints
        "logging_steps": Path("logging_steps"),
        "logging_first_step": Own(),
        "logging_strategy": Own(),
        "logging_dir": Own(),
        "log_style": Own(),
        "report_to": Own(),
        "do_train": Own(),
        "do_eval": Path("do_eval"),
        "do_predict": Own(),
        "eval_strategy": Own(),
        "eval_delay": Own(),
        "eval_on_start": Own(),
        "eval_steps": Path("eval_step_interval"),
        "eval_step_interval": Path("eval_step_interval"),
        "eval_epoch_interval": Path("eval_epoch_interval"),
        "save_strategy": Own(),
        "save_steps": Path("save_steps"),
        "save_seconds": Refused("save every so many steps, save_steps"),
        "save_safetensors": Inert(_ONE_FORMAT, (True,)),
        "enable_jit_checkpoint": Refused("save every so many steps, save_steps"),
        "save_total_limit": Path("save_total_limit"),
        "save_only_model": Own(),
        "save_on_each_node": Inert(_ONE_FORMAT),
        "integrated_save": Inert(_ONE_FORMAT, (True,)),
        "load_best_model_at_end": Own(),
        "metric_for_best_model": Own(),
        "greater_is_better": Own(),
        "resume_from_checkpoint": Keys(_resume),
        "resume_training": Path("resume_training"),
        "auto_trans_ckpt": Path("auto_trans_ckpt"),
        "only_save_strategy": Path("only_save_strategy"),
        # data
        "dataloader_num_workers": Path("train_dataset.num_parallel_workers"),
        "dataloader_drop_last": Path("train_dataset.drop_remainder"),
        "group_by_length": Refused("all rows have one length"),
        "train_sampling_strategy": Own(),
        "max_length": Own(),
        "packing": Own(),
        "assistant_only_loss": Own(),
        "ignore_data_skip": Path("ignore_data_skip"),
        "average_tokens_across_devices": Inert(_TOKENS, (True,)),
        "full_determinism": Keys(
            lambda value: {"context.deterministic": "ON"} if value else {},
        ),
        "use_cpu": Keys(lambda value: {"context.device_target": "CPU"} if value else {}),
        "neftune_noise_alpha": Own(),
        "label_smoothing_factor": Own(),
        # MindFormers' running
        "sink_mode": Path("runner_config.sink_mode"),
        "sink_size": Path("runner_config.sink_size"),
        "profile": Path("profile"),
        # what others do for transformers
        "push_to_hub": Refused(_NO_HUB),
        "hub_model_id": Refused(_NO_HUB),
        "deepspeed": Refused(_SHARDS),
        "fsdp": Refused(_SHARDS),
        "fsdp_config": Refused(_SHARDS),
        "fsdp_min_num_params": Refused(_SHARDS),
        "fsdp_transformer_layer_cls_to_wrap": Refused(_SHARDS),
        "accelerator_config": Refused("set_parallel_config says how ranks share the work", ({},)),
        "parallelism_config": Refused("set_parallel_config says how ranks share the work"),
        "torch_compile": Refused(_NO_TORCH),
        "torch_compile_backend": Refused(_NO_TORCH),
        "torch_compile_mode": Refused(_NO_TORCH),
        "torchdynamo": Refused(_NO_TORCH),
        "jit_mode_eval": Refused(_NO_TORCH),
        "use_ipex": Inert(_KERNELS),
        "use_mps_device": Refused("devices are CPUs and NPUs"),
        "tpu_num_cores": Refused("devices are CPUs and NPUs"),
        "half_precision_backend": Inert(_KERNELS, ("auto",)),
        "fp16_backend": Inert(_KERNELS, ("auto",)),
        "fp16_opt_level": Inert(_KERNELS, ("O1",)),
        "adafactor": Refused("optim is adamw, sgd or lion_32bit"),
        "tf32": Inert("it is a mode of another device"),
        "bf16_full_eval": Inert(_KERNELS),
        "fp16_full_eval": Inert(_KERNELS),
        "use_liger_kernel": Inert(_KERNELS),
        "liger_kernel_config": Inert(_KERNELS),
        "use_cache": Inert("training keeps no keys and values"),
        "torch_empty_cache_steps": Inert(_NO_TORCH),
        "auto_find_batch_size": Refused("Trainer.plan() tells the memory of a batch size"),
        "lr_scheduler_kwargs": Keys(_shape),
        "optim_args": Refused("give weight_decay, adam_beta1, adam_beta2, adam_epsilon"),
        "optim_target_modules": Refused("all trainable parameters have one optimizer"),
        "logging_nan_inf_filter": Inert("a loss that is no number is logged as such", (True,)),
        "log_on_each_node": Inert("one rank logs", (True,)),
        "log_level": Inert("Python's logging sets it", ("passive",)),
        "log_level_replica": Inert("Python's logging sets it", ("warning",)),
        "run_name": Own(),
        "project": Inert("report_to has tensorboard and wandb", ("huggingface",)),
        "trackio_space_id": Inert("report_to has tensorboard and wandb", ("trackio",)),
        "trackio_bucket_id": Inert("report_to has tensorboard and wandb"),
        "trackio_static_space_id": Inert("report_to has tensorboard and wandb"),
        "include_tokens_per_second": Inert("log lines tell the time of a step"),
        "include_num_input_tokens_seen": Inert("log lines count consumed samples", ("no",)),
        "prediction_loss_only": Inert("evaluation is of the loss", (True,)),
        "eval_accumulation_steps": Inert("evaluation keeps no outputs"),
        "eval_do_concat_batches": Inert("evaluation keeps no outputs", (True,)),
        "eval_use_gather_object": Inert("evaluation keeps no outputs"),
        "include_inputs_for_metrics": Refused("evaluation is of loss and perplexity"),
        "include_for_metrics": Refused("evaluation is of loss and perplexity", ([],)),
        "batch_eval_metrics": Refused("evaluation is of loss and perplexity"),
        "restore_callback_states_from_checkpoint": Inert("callbacks keep no state in checkpoints"),
        "gradient_checkpointing_kwargs": Refused(
            "set_recompute_config says what is recomputed",
            ({}, {"use_reentrant": False}, {"use_reentrant": True}),
        ),
        "hub_token": Refused(_NO_HUB),
        "hub_revision": Refused(_NO_HUB),
        "push_to_hub_model_id": Refused(_NO_HUB),
        "push_to_hub_organization": Refused(_NO_HUB),
        "push_to_hub_token": Refused(_NO_HUB),
        "hub_strategy": Inert(_NO_HUB, ("every_save",)),
        "hub_private_repo": Inert(_NO_HUB),
        "hub_always_push": Inert(_NO_HUB),
        "dataloader_pin_memory": Inert(_LOADING, (True,)),
        "dataloader_persistent_workers": Inert(_LOADING),
        "dataloader_prefetch_factor": Inert(_LOADING),
        "dataloader_multiprocessing_context": Inert(_LOADING),
        "dataloader_in_order": Inert("the order of the data does not depend on threads", (True,)),
        "split_batches": Refused("batch_size is that of one rank"),
        "dispatch_batches": Inert("rows of a stream are dealt out to the ranks"),
        "length_column_name": Inert("all rows have one length", ("length",)),
        "label_names": Inert("labels are read from the column labels", (["labels"],)),
        "ddp_find_unused_parameters": Inert(_REDUCTION),
        "ddp_bucket_cap_mb": Inert(_REDUCTION),
        "ddp_broadcast_buffers": Inert(_REDUCTION),
        "ddp_static_graph": Inert(_REDUCTION),
        "ddp_backend": Inert("MPI on CPU, HCCL on NPUs"),
        "ddp_timeout": Inert("a rank that ends is noticed at once", (1800,)),
        "local_rank": Inert("the launcher tells ranks"),
        "debug": Refused("a rank that fails says so in one line", ([],)),
        "skip_memory_metrics": Inert("Trainer.plan() tells the memory", (True,)),
        "disable_tqdm": Own(),
        "remove_unused_columns": Inert("rows are read from the column input_ids", (True,)),
    }
)
"""Argument -> what it means. None is "not given"."""


def map_arguments(arguments: Mapping[str, Any]) -> Arguments:
    """Translate training arguments.

    Raises:
        ValueError: an argument that does not exist, with the nearest one, or that is refused; two
            arguments that say the same differently.
    """
    keys: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    own: dict[str, Any] = {}
    inert: dict[str, list[str]] = {}
    for name, value in arguments.items():
        if name not in ROWS:
            raise ValueError(f"TrainingArguments has no {name!r}{suggestion(name, ROWS)}")
        row = ROWS[name]
        if value is None:
            continue
        if isinstance(row, Own):
            own[name] = value
        elif isinstance(row, Inert):
            if value not in (*ASKS_NOTHING, *row.quiet):
                inert.setdefault(row.reason, []).append(name)
        elif isinstance(row, Refused):
            if value not in (*ASKS_NOTHING, *row.quiet):
                raise ValueError(f"TrainingArguments {name}={value!r}: {row.reason}")
        else:
            named = {row.name: value} if isinstance(row, Path) else row.translate(value)
            for key, item in named.items():
                if keys.setdefault(key, item) != item:
                    raise ValueError(
                        f"TrainingArguments gives {given_as[key]}={keys[key]!r} and "
                        f"{name}={item!r}, which are one setting; keep one"
                    )
                given_as[key] = name
    notes = [f"{', '.join(names)}: no effect, {reason}" for reason, names in inert.items()]
    return Arguments(keys, own, tuple(notes))
