# SPDX-License-Identifier: Apache-2.0
"""What a run's record says at its start: configuration, layout, plan, environment."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from typing import Any

import mindspeed_ms
from mindspeed_ms import ops
from mindspeed_ms.backend import device
from mindspeed_ms.config import SECTION_CLASSES, AllConfig
from mindspeed_ms.config.section import field_default
from mindspeed_ms.engine.train_state import TrainState
from mindspeed_ms.planning.plan import Plan, make_plan

_PACKAGES = ("mindspore", "numpy", "mpi4py")


def start_facts(config: AllConfig, state: TrainState, world_size: int) -> dict[str, Any]:
    """Facts that hold from here on."""
    settings = config.to_dict()
    parallel = config.parallel_config
    return {
        "iteration": state.iteration,
        "consumed_samples": state.consumed_train_samples,
        "time": time.time(),
        "world_size": world_size,
        "config": settings,
        "changed": changed_settings(settings),
        "environment": environment(),
        "layout": {
            "order": parallel.order,
            "tensor": parallel.tensor_model_parallel_size,
            "context": parallel.context_parallel_size,
            "data": parallel.data_parallel_size(world_size),
            "pipeline": parallel.pipeline_model_parallel_size,
            "expert": parallel.expert_model_parallel_size,
        },
        "plan": plan_facts(config, world_size),
    }


def changed_settings(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """``section.field`` -> value, of the fields that are not at their default."""
    changed = {}
    for section, values in settings.items():
        for name, value in values.items():
            default = field_default(SECTION_CLASSES[section], name)
            plain = list(default) if isinstance(default, tuple) else default
            plain = plain.to_dict() if hasattr(plain, "to_dict") else plain
            if value != plain:
                changed[f"{section}.{name}"] = value
    return changed


def environment() -> dict[str, Any]:
    """Versions and machine."""
    versions = {"mindspeed_ms": mindspeed_ms.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        **versions,
        "host": platform.node(),
        "system": platform.platform(),
        "device": device.platform(),
        "cores": device.cores(),
        "kernels": ops.report(),
    }


def plan_facts(config: AllConfig, world_size: int) -> dict[str, Any] | None:
    """What was planned for every pipeline stage; None where no plan can be made."""
    try:
        plan = make_plan(config, world_size)
    except ValueError:
        return None
    return {
        "parameters": plan.parameters,
        "operations_per_step": plan.operations,
        "step_seconds": plan.step_seconds,
        "stages": [_stage_facts(plan, stage) for stage in range(len(plan.stages))],
    }


def _stage_facts(plan: Plan, number: int) -> dict[str, Any]:
    stage = plan.stages[number]
    placement = plan.placement
    return {
        "stage": number,
        "layers": [list(placement.layers_of(number, c)) for c in range(placement.num_chunks)],
        "parameters": stage.state.parameters,
        "weights": stage.state.weights,
        "gradients": stage.state.gradients,
        "optimizer": stage.state.optimizer,
        "activations": stage.activations.peak,
        "peak": stage.bytes_at_peak,
    }
