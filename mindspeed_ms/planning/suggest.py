# SPDX-License-Identifier: Apache-2.0
"""Search for layouts: those that fit the memory of a device, fastest first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.planning.activations import stage_activations
from mindspeed_ms.planning.memory import stage_state
from mindspeed_ms.planning.plan import Plan, make_plan, schedule_of
from mindspeed_ms.planning.timing import Device

RECOMPUTES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("selective", {"recompute_granularity": "selective"}),
    (
        "full",
        {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        },
    ),
)
"""What is recomputed, from nothing to everything."""

_STATED_ELSEWHERE = (
    "num_layer_list",
    "pipeline_model_parallel_layout",
    "num_layers_per_virtual_pipeline_stage",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "standalone_embedding_stage",
    "microbatch_group_size_per_vp_stage",
    "recompute",
    "select_recompute",
    "select_comm_recompute",
)
"""Options of one layout that make no sense in another; candidates leave them at their defaults."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout and its plan."""

    plan: Plan
    recompute: str

    @property
    def flags(self) -> str:
        """How a command line asks for it."""
        parallel = self.plan.config.parallel_config
        words = [
            f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size}",
            f"--pipeline-model-parallel-size {parallel.pipeline_model_parallel_size}",
            f"--micro-batch-size {self.plan.config.dataset_config.batch_size}",
        ]
        chunks = parallel.virtual_pipeline_model_parallel_size
        if chunks:
            words.append(f"--virtual-pipeline-model-parallel-size {chunks}")
        if parallel.sequence_parallel:
            words.append("--sequence-parallel")
        words.append("--use-distributed-optimizer")
        words += {
            "none": [],
            "selective": ["--recompute-granularity selective"],
            "full": [
                "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
            ],
        }[self.recompute]
        return " ".join(words)


def divisors(number: int, limit: int) -> list[int]:
    """Divisors of a number, up to a limit."""
    return [part for part in range(1, min(number, limit) + 1) if number % part == 0]


def suggest(
    config: AllConfig, world_size: int, device: Device | None = None, count: int = 10
) -> list[Candidate]:
    """Search layouts of the same model, batch and length.

    Tensor size, pipeline size, model chunks, micro-batch and recomputation vary; context and expert
    sizes stay. Every candidate shards the optimizer state.

    Args:
        config: the model and its batch.
        world_size: ranks.
        device: what a rank runs on.
        count: candidates to return.

    Returns:
        Those that fit the device's memory, fastest first.

    Raises:
        ValueError: nothing fits.
    """
    device = device or Device()
    found: list[Candidate] = []
    least = math.inf
    for change in _layouts(config, world_size, device):
        for name, recompute in RECOMPUTES:
            changed = _changed(config, world_size, change, recompute)
            if changed is None:
                break
            needed = _first_stage_bytes(changed, world_size)
            if needed > device.memory_bytes:
                least = min(least, needed)
                continue
            plan = make_plan(changed, world_size, device)
            if plan.fits:
                found.append(Candidate(plan, name))
                break  # more recomputation only makes it slower
            least = min(least, plan.bytes_at_peak)
    if not found:
        raise ValueError(
            f"no layout on {world_size} ranks fits into {device.memory_bytes / 2**30:.0f} GiB; the "
            f"smallest needs {least / 2**30:.1f} GiB, use more ranks or more memory "
            "(--device-memory)"
        )
    found.sort(key=lambda candidate: candidate.plan.step_seconds)
    return found[:count]


def _layouts(config: AllConfig, world_size: int, device: Device) -> Iterator[dict[str, Any]]:
    """Changes of the parallel section and the micro-batch, legal or not."""
    model, parallel = config.model_config, config.parallel_config
    context = parallel.context_parallel_size
    for tensor in divisors(model.num_attention_heads, device.ranks_per_node):
        for stages in divisors(world_size, min(model.num_layers, 64)):
            if world_size % (tensor * stages * context):
                continue
            data = world_size // (tensor * stages * context)
            total = config.global_batch_size(world_size)
            for micro in (1, 2, 4, 8):
                if total % (micro * data):
                    continue
                for chunks in (None, 2, 3, 4, 8):
                    if chunks is None or (stages > 1 and model.num_layers % (stages * chunks) == 0):
                        yield {
                            "tensor_model_parallel_size": tensor,
                            "pipeline_model_parallel_size": stages,
                            "virtual_pipeline_model_parallel_size": chunks,
                            "sequence_parallel": tensor > 1,
                            "batch_size": micro,
                        }


def _first_stage_bytes(config: AllConfig, world_size: int) -> int:
    """Bytes at the peak of the first stage, usually the fullest: what a quick look costs."""
    microbatches = config.num_micro_batches(world_size)
    state = stage_state(config, world_size, 0)
    return state.total + stage_activations(config, 0, microbatches).peak


def _changed(
    config: AllConfig, world_size: int, change: Mapping[str, Any], recompute: Mapping[str, Any]
) -> AllConfig | None:
    """The configuration with another layout; None when that is not legal."""
    sections = {name: dict(values) for name, values in config.to_dict().items()}
    parallel = sections["parallel_config"]
    for name in _STATED_ELSEWHERE:
        parallel.pop(name, None)
    parallel |= {name: value for name, value in change.items() if name != "batch_size"}
    parallel["allow_uneven_stages"] = True
    sections["dataset_config"] |= {"batch_size": change["batch_size"], "micro_batch_num": 1}
    sections["training_config"] |= {
        "global_batch_size": config.global_batch_size(world_size),
        "wrap_with_ddp": True,
        "use_distributed_optimizer": True,
    }
    model = sections["model_config"]
    for name in RECOMPUTES[-1][1] | {"recompute_modules": None}:
        model.pop(name, None)
    model |= recompute
    try:
        changed = assemble(sections).validate(world_size)
        schedule_of(changed, world_size)
    except ValueError:
        return None
    return changed


def suggestion_lines(candidates: list[Candidate]) -> list[str]:
    """Candidates as lines of text, fastest first."""
    lines = ["-------------- layouts that fit, fastest first -------------"]
    for number, candidate in enumerate(candidates, start=1):
        plan = candidate.plan
        lines.append(
            f"  {number}. {plan.step_seconds:.3g} s, {plan.utilization:.1%} of the peak, "
            f"{plan.bytes_at_peak / 2**30:.1f} GiB: {candidate.flags}"
        )
    return lines


def with_memory(device: Device, gibibytes: float | None, tflops: float | None) -> Device:
    """A device with the figures the user gave."""
    if gibibytes is not None:
        device = replace(device, memory_bytes=gibibytes * 2**30)
    return device if tflops is None else replace(device, tflops=tflops)
