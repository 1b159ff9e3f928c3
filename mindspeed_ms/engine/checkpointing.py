# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: when they are written, and what is taken from one at the start."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig, to_yaml
from mindspeed_ms.core.dist_checkpointing.live_state import (
    MAIN,
    WEIGHTS,
    LiveTensor,
    live_tensors,
)
from mindspeed_ms.core.dist_checkpointing.loader import (
    KINDS,
    LoadOptions,
    load_tensors,
    verify_checksums,
)
from mindspeed_ms.core.dist_checkpointing.opener import find_together, open_together
from mindspeed_ms.core.dist_checkpointing.retention import continued_run
from mindspeed_ms.core.dist_checkpointing.saver import CheckpointSaver, SaveSettings, Snapshot
from mindspeed_ms.core.dist_checkpointing.shared_folders import require_everywhere
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.optimizer import MegatronOptimizer, OptimizerParamScheduler
from mindspeed_ms.engine import random_states
from mindspeed_ms.engine.adapters import head_alias, load_base, open_adapters
from mindspeed_ms.engine.batch_counts import evaluated_samples, phase
from mindspeed_ms.engine.datasets import tokenizer_of
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.engine.train_state import TrainState
from mindspeed_ms.engine.upcycling import upcycle
from mindspeed_ms.files.regular_file import real_path
from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.find import Found, OnlyTornError
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.identity import identity

logger = logging.getLogger(__name__)

_HEADS = "num_attention_heads"

_LAYOUT = {
    "tensor": "tensor_model_parallel_size",
    "pipeline": "pipeline_model_parallel_size",
    "virtual_pipeline": "virtual_pipeline_model_parallel_size",
    "context": "context_parallel_size",
    "expert": "expert_model_parallel_size",
    "expert_tensor": "expert_tensor_parallel_size",
}
"""Axis -> field of the parallel section: what decides which random stream a rank draws from."""

_DATA = (
    "data_path",
    "train_data_path",
    "valid_data_path",
    "test_data_path",
    "split",
    "mock_data",
)
"""Settings that decide what sample number n is, beside seed and sequence length."""


# --- saving -----------------------------------------------------------------------------------


def make_saver(config: AllConfig) -> CheckpointSaver | None:
    """What writes the checkpoints of a run; None if it keeps none. It holds the folder.

    Raises:
        ValueError: the folder cannot be written, another run saves to it, or hosts do not share it.

    Parallelism: collective over the world.
    """
    training = config.training_config
    if not training.save_checkpoints:
        return None
    retained = training.save_retain_interval
    if retained is None and training.non_persistent_save_interval is not None:
        retained = training.save_interval
    saver = CheckpointSaver(
        SaveSettings(
            root=Path(training.output_dir),
            container="ckpt" if training.ckpt_format == "ckpt" else "safetensors",
            keep=training.keep_checkpoint_max or None,
            retain_interval=retained,
            crc_check=training.crc_check,
            is_async=training.async_save,
        )
    )
    for line in saver.open():
        print_rank_0(f" {line}")
    return saver


def save_checkpoint(
    saver: CheckpointSaver,
    config: AllConfig,
    models: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    state: TrainState,
    facts: dict[str, Any],
) -> None:
    """Write a checkpoint, in the background if the configuration says so.

    Args:
        saver: writes it.
        config: the run's configuration.
        models: the chunks of this rank.
        optimizer: left out with ``no_save_optim``.
        scheduler: its position belongs to the optimizer's state.
        state: where the run stands.
        facts: what else the index says: the run, its health, the tokens in use.

    Raises:
        SaveError: it (or the one before it) could not be written.

    Parallelism: collective over the world.
    """
    training = config.training_config
    root, iteration = training.output_dir, state.iteration
    print_rank_0(
        f"saving checkpoint at iteration {iteration:7d} to {root} in "
        f"{saver.settings.container} format"
    )
    for model in models:
        model.finish_param_sync()
    tensors = live_tensors(models, None if training.no_save_optim else optimizer)
    saver.save(
        tensors,
        Snapshot(
            iteration=iteration,
            common={**facts, **_common(config, optimizer, scheduler, state)},
            rank_state={} if training.no_save_rng else random_states.capture(),
            config=to_yaml(config),
        ),
    )
    if saver.settings.is_async:
        print_rank_0(
            f"  scheduled an async checkpoint save at iteration {iteration:7d} to {root} "
            f"(training waited {saver.stall_seconds:.3f} s)"
        )
    else:
        print_rank_0(f"  successfully saved checkpoint from iteration {iteration:7d} to {root}")


def _common(
    config: AllConfig,
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    state: TrainState,
) -> dict[str, Any]:
    has_optimizer = not config.training_config.no_save_optim
    scaler = optimizer.grad_scaler
    return {
        **asdict(state),
        "world_size": comm.get_world_size(),
        "job": comm.job_name(),
        "layout": _layout(config),
        "is_tied": not config.model_config.untie_embeddings_and_output_weights,
        "optimizer": {
            "has_state": has_optimizer,
            "num_steps": optimizer.num_steps,
            "grad_scaler": None if scaler is None else scaler.state_dict(),
        },
        "scheduler": scheduler.state_dict() if has_optimizer else None,
        "data": _data_identity(config),
        "model": _model_identity(config),
        "config": config.to_dict(),
    }


def _layout(config: AllConfig) -> dict[str, int]:
    layout = {axis: getattr(config.parallel_config, name) or 1 for axis, name in _LAYOUT.items()}
    return {**layout, "data": config.parallel_config.data_parallel_size(comm.get_world_size())}


def _data_identity(config: AllConfig) -> dict[str, Any]:
    dataset = config.dataset_config.to_dict()
    return {
        **{name: dataset.get(name) for name in _DATA},
        "seed": config.training_config.seed,
        "seq_length": config.model_config.seq_length,
    }


def _model_identity(config: AllConfig) -> dict[str, str]:
    """What the model computes, by option; sizes of tables and sequences are compared elsewhere."""
    found = {name.partition(".")[2]: value for name, value in identity(config).items()}
    elsewhere = ("seq_length", "max_position_embeddings", "vocab_size", "padded_vocab_size")
    return {name: str(value) for name, value in found.items() if name not in elsewhere}


def true_vocab_size(config: AllConfig) -> int | None:
    """Tokens in use, without padding; None if neither a tokenizer nor a size says."""
    if config.dataset_config.tokenizer_type is None:
        return config.dataset_config.vocab_size
    return tokenizer_of(config).vocab_size


# --- loading ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What a run starts from."""

    state: TrainState = field(default_factory=TrainState)
    """Where the run stands."""
    continued: str | None = None
    """The run whose newest checkpoint it goes on from, in the very folder it saves to."""
    saved_already: int | None = None
    """The iteration loaded, if it lies in the folder the run saves to."""
    base: str | None = None
    """Checkpoint of the frozen weights below adapters."""


def load_checkpoint(
    config: AllConfig,
    models: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
) -> Loaded:
    """Fill model, optimizer and schedules as the configuration asks for; say what was not restored.

    Returns:
        What was loaded; the start of a run if nothing was.

    Raises:
        ValueError: there is no usable checkpoint, or it does not fit the model.
        RuntimeError: what was loaded is not what was saved.

    Parallelism: collective over the world.
    """
    training = config.training_config
    found = find_to_load(config)
    base = None
    if config.lora_config.use_lora:
        found, base = load_base(config, models, found, true_vocab_size(config))
        optimizer.refresh_main_params()  # lengths of rows follow the weights
    if config.moe_config.moe_use_upcycling:
        upcycle(config, models, found)
        optimizer.refresh_main_params()
        return Loaded()
    if found is None:
        return Loaded(base=base)
    require_everywhere(found.folder)
    for line in found.notes:
        print_rank_0(f" {line}")
    print_rank_0(f" loading checkpoint from {found.folder} (format {found.kind})")
    started = time.monotonic()
    if found.kind == "peft" and config.lora_config.use_lora:
        catalog = open_adapters(config, found)
    else:
        catalog = open_together(found, lambda common: gpt_spec(config.model_config))
    missed = list(catalog.notes)
    if training.crc_check:
        missed += verify_checksums(catalog, catalog.tensors).lines()
    is_resumed = training.resume_training and not training.finetune and found.kind != "peft"
    if is_resumed:
        _require_same_heads(config, catalog)
    with_optimizer = is_resumed and not training.no_load_optim
    main_is_weight = training.load_main_params_from_ckpt and not with_optimizer
    tensors = _wanted(models, optimizer, with_optimizer, main_is_weight)
    _require_state(catalog, tensors if with_optimizer else [])
    options = LoadOptions(
        aliases=head_alias(config, catalog),
        vocab_size=catalog.common.get("vocab_size") or true_vocab_size(config),
        main_is_weight=main_is_weight,
    )
    report = load_tensors(catalog, models, optimizer, tensors, options)
    seconds = time.monotonic() - started
    missed += report.notes
    state = TrainState()
    if is_resumed:
        state = _resume(config, catalog, optimizer if with_optimizer else None, scheduler)
        missed += _restore_random_states(config, catalog)
        missed += _different_data(config, catalog)
    missed += _different_model(config, catalog)
    missed += _not_restored(config, catalog, is_resumed, with_optimizer)
    for line in missed:
        print_rank_0(f"  {line}")
    print_rank_0(
        f"  successfully loaded checkpoint from {found.folder} at iteration {state.iteration}"
        f" ({report.num_bytes / 1e6:.1f} MB in {seconds:.3f} s, {report.verified} tensors"
        " verified)"
    )
    is_apart = real_path(found.folder.parent) != real_path(training.output_dir)
    if not is_resumed or is_apart or training.override_ckpt_iteration is not None:
        return Loaded(state=state, base=base)
    return Loaded(
        state=state,
        continued=continued_run(found.folder.parent, state.iteration),
        saved_already=state.iteration,
        base=base,
    )


def _wanted(
    models: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    with_optimizer: bool,
    main_is_weight: bool,
) -> list[LiveTensor]:
    """What is filled: weights, and of the optimizer all, the master weights, or nothing."""
    if with_optimizer or not main_is_weight:
        return live_tensors(models, optimizer if with_optimizer else None)
    tensors = live_tensors(models, optimizer)
    return [tensor for tensor in tensors if tensor.kind in (WEIGHTS, MAIN)]


def find_to_load(config: AllConfig) -> Found | None:
    """The checkpoint a run starts from, None for a start from initial weights.

    Raises:
        ValueError: there is none, and the user has not said that a run may start without.
    """
    training = config.training_config
    if not training.load_checkpoint:
        return None
    path = Path(training.load_checkpoint)
    why = f"could not find a checkpoint in {path}"
    try:
        found = find_together(path, training.ckpt_step)
    except OnlyTornError as error:
        found, why = None, str(error)
    if found is not None:
        return found
    is_own_folder = training.save_checkpoints and path == Path(training.output_dir)
    must_exist = training.exit_on_missing_checkpoint
    if must_exist or (must_exist is None and not is_own_folder):
        raise ValueError(
            f"{path} holds no checkpoint to load ({why}); correct the path, or leave out "
            "--exit-on-missing-checkpoint (YAML: exit_on_missing_checkpoint: False) to start from "
            "initial weights"
        )
    print_rank_0(f"WARNING: {why}; will not load any and will start from random weights")
    return None


def _require_state(catalog: Catalog, tensors: Sequence[LiveTensor]) -> None:
    """Check that what an optimizer keeps is there; plain SGD on fp32 weights keeps nothing.

    Raises:
        ValueError: it is not.
    """
    keeps_state = any(tensor.kind != WEIGHTS for tensor in tensors)
    if keeps_state and not _has_optimizer(catalog):
        raise ValueError(
            f"{catalog.source} holds no optimizer state, so training cannot be resumed exactly; "
            "load it with --no-load-optim, or --finetune to start from its weights"
        )


def _has_optimizer(catalog: Catalog) -> bool:
    return any(name.partition(".")[0] in KINDS[1:] for name in catalog.tensors)


def _resume(
    config: AllConfig,
    catalog: Catalog,
    optimizer: MegatronOptimizer | None,
    scheduler: OptimizerParamScheduler,
) -> TrainState:
    common = catalog.common
    if optimizer is not None:
        stored = common.get("optimizer") or {}
        optimizer.num_steps = int(stored.get("num_steps", common.get("iteration", 0)))
        if optimizer.grad_scaler is not None and stored.get("grad_scaler"):
            optimizer.grad_scaler.load_state_dict(stored["grad_scaler"])
        if common.get("scheduler"):
            scheduler.load_state_dict(common["scheduler"])
    iteration = int(common.get("iteration", 0))
    consumed, evaluated = (common.get(f"consumed_{split}_samples") for split in ("train", "valid"))
    if config.training_config.override_ckpt_iteration is not None:
        iteration, consumed, evaluated = config.training_config.override_ckpt_iteration, None, None
    if consumed is None:
        consumed = iteration * config.global_batch_size(comm.get_world_size())
    if evaluated is None:
        evaluated = evaluated_samples(config, iteration)
    began = consumed if config.training_config.new_dataset else common.get("data_began_at", 0)
    state = TrainState(iteration, int(consumed), int(evaluated), int(began))
    if config.training_config.phase_transition_iterations:
        state.data_began_at = max(state.data_began_at, phase(config, state)[0])
    return state


def _restore_random_states(config: AllConfig, catalog: Catalog) -> list[str]:
    """Continue the random streams; what could not be continued, in words."""
    if config.training_config.no_load_rng:
        return []
    states: list[Mapping[str, Any]] = [state for state in catalog.common.get("rng", []) if state]
    saved, present = catalog.common.get("layout", {}), _layout(config)
    agree = all(saved.get(axis) == present[axis] for axis in _LAYOUT if axis != "virtual_pipeline")
    if not states:
        return ["not restored: random states (the checkpoint holds none of this project)"]
    if not random_states.restore(states, agree):
        return ["not restored: random states (another layout); streams go on behind the old ones"]
    return []


def _different_data(config: AllConfig, catalog: Catalog) -> list[str]:
    stored = catalog.common.get("data")
    if not stored or config.training_config.new_dataset:
        return []
    present = _data_identity(config)
    changed = [name for name in present if stored.get(name) != present[name]]
    return [
        f"WARNING: {name} was {stored.get(name)!r} and is {present[name]!r}: the run goes on at "
        "the old position of other data; --new-dataset starts at its beginning"
        for name in changed
    ]


def _require_same_heads(config: AllConfig, catalog: Catalog) -> None:
    """Refuse to resume weights that would be cut into other heads, as Megatron does.

    Raises:
        ValueError: the number of heads is another one; a checkpoint may not say it.
    """
    told = (catalog.common.get("model") or {}, catalog.common.get("megatron_args") or {})
    stored = next((one[_HEADS] for one in told if _HEADS in one), None)
    present = config.model_config.num_attention_heads
    if stored is not None and int(stored) != present:
        raise ValueError(
            f"{catalog.source} is of a model with {stored} attention heads, and "
            f"num_attention_heads is {present}; set it to {stored}, or begin another run from its "
            "weights (--finetune)"
        )


def _different_model(config: AllConfig, catalog: Catalog) -> list[str]:
    """Options that make the weights compute something else than where they were trained."""
    stored, present = catalog.common.get("model") or {}, _model_identity(config)
    return [
        f"WARNING: {name} was {stored[name]} and is {present[name]}: the weights go on in a model "
        "that computes something else"
        for name in stored
        if name in present and stored[name] != present[name]
    ]


def _not_restored(
    config: AllConfig, catalog: Catalog, is_resumed: bool, with_optimizer: bool
) -> list[str]:
    training, lines = config.training_config, []
    if not is_resumed:
        reason = "finetune" if training.finetune else "resume_training is off"
        return [f"not restored: iteration, optimizer, schedules, random states ({reason})"]
    if not with_optimizer:
        lines.append("not restored: optimizer state and schedules (no_load_optim)")
    if training.no_load_rng and catalog.common.get("rng"):
        lines.append("not restored: random states (no_load_rng)")
    if training.new_dataset:
        lines.append("not restored: position in the data (new_dataset)")
    return lines
