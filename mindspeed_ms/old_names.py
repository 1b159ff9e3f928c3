# SPDX-License-Identifier: Apache-2.0
"""Names of the predecessor at its import paths: one table of where they are now.

A module below that has such a name ends in ``__getattr__ = old_names.of(__name__)``, so that it is
loaded when a script asks for it, and nothing here depends on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

_ROOM = "mindspeed_ms.predecessor."

_OPTIMIZERS = {
    "DistributedOptimizer": "optimizer",
    "Float16OptimizerWithFloat16Params": "optimizer",
    "MixedPrecisionOptimizer": "optimizer",
    "get_optimizer": "optimizer",
    "get_optimizer_param_scheduler": "schedule",
}
_CHECKPOINTS = {
    name: "checkpoints"
    for name in ("get_checkpoint_name", "get_last_checkpoint", "load_checkpoint", "save_checkpoint")
}
_RANDOM = {
    name: "random"
    for name in (
        *("DATA_PARALLEL_GENERATOR", "EXPERT_PARALLEL_GENERATOR", "TENSOR_PARALLEL_GENERATOR"),
        *("RNGStateTracer", "get_rng_tracer", "set_rng_seed"),
    )
}
_LINEARS = {
    name: "linear"
    for name in ("LinearWithFrozenWeight", "LinearWithGradAccumulationAndAsyncCommunication")
}
_REGIONS = {
    name: "regions"
    for name in (
        *("CopyToModelParallelRegion", "ReduceFromModelParallelRegion"),
        *("ScatterToModelParallelRegion", "GatherFromModelParallelRegion"),
        *("ScatterToSequenceParallelRegion", "GatherFromSequenceParallelRegion"),
        *("ReduceScatterToSequenceParallelRegion", "AllToAll", "AllToAllSP2HP", "AllToAllHP2SP"),
        *("all_to_all_sp2hp", "all_to_all_hp2sp"),
    )
}
_CONTEXT = {
    "FlashSP": "context_parallel",
    "RingAttention": "context_parallel",
    "UlyssesContextAttention": "context_parallel",
    "get_batch_on_this_cp_rank": "context_parallel",
    "get_sp_chuncks": "context_parallel",
    "get_sp_chuncks_attn_mask_general": "context_parallel",
    "get_sp_chuncks_general": "context_parallel",
}
_TRAINING = {
    "ParallelTrainingReducer": "reducer",
    "TrainOneStepCell": "train_one_step",
    "get_loss_func": "model",
    "get_model": "model",
    "train": "train",
}

HOMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "core.context_parallel": _CONTEXT,
        "core.dist_checkpointing": _CHECKPOINTS,
        "core.distributed": {
            "DistributedDataParallel": "data_parallel",
            "DistributedDataParallelConfig": "data_parallel",
            "ParamAndGradBuffer": "data_parallel",
        },
        "core.optimizer": _OPTIMIZERS,
        "core.tensor_parallel": {**_LINEARS, **_RANDOM, **_REGIONS},
        "core.tensor_parallel.layers": _LINEARS,
        "core.tensor_parallel.mappings": _REGIONS,
        "core.tensor_parallel.random": _RANDOM,
        "legacy.model": {"get_attention_mask": "model"},
        "legacy.model.moe": {"MoEAlltoAllTokenDispatcher": "model"},
        "legacy.model.moe.token_dispatcher": {"MoEAlltoAllTokenDispatcher": "model"},
        "legacy.model.transformer": {"_get_num_layers": "model"},
        "training": _TRAINING,
        "training.training": _TRAINING,
        "training.utils": {"set_weight_decay": "model"},
    }
)
"""Module -> name -> module of the predecessor's room."""


def names_of(module: str) -> tuple[str, ...]:
    """The names that a module has from the table, for its ``__all__``."""
    return tuple(HOMES[module.removeprefix("mindspeed_ms.")])


def of(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that has names in the table."""
    names = HOMES[module.removeprefix("mindspeed_ms.")]

    def get(name: str) -> Any:  # noqa: ANN401 - classes and functions
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_ROOM + names[name]), name)

    return get
