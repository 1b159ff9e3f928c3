# SPDX-License-Identifier: Apache-2.0
"""A plan as lines of text."""

from __future__ import annotations

from collections.abc import Iterable

from mindspeed_ms.plan.rank_generator import RankGenerator
from mindspeed_ms.planning.plan import Plan, StagePlan

_MIB, _GIB = 2**20, 2**30
_MOST_STAGES = 8
"""Stages that are listed one by one; of more, the first, the fullest and the last."""


def plan_lines(plan: Plan) -> list[str]:
    """The report of a dry run."""
    return [
        *_layout(plan),
        *_groups(plan),
        *_sizes(plan),
        *_memory(plan),
        *_traffic(plan),
        *_time(plan),
    ]


def _layout(plan: Plan) -> list[str]:
    parallel, placement = plan.config.parallel_config, plan.placement
    data = parallel.data_parallel_size(plan.world_size)
    lines = [
        "------------------------- layout --------------------------",
        f"  {plan.world_size} ranks = tensor {parallel.tensor_model_parallel_size} × context "
        f"{parallel.context_parallel_size} × data {data} × pipeline {placement.num_stages}; "
        f"expert {parallel.expert_model_parallel_size} × expert tensor "
        f"{parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size} inside",
        f"  global batch {plan.config.global_batch_size(plan.world_size)} = micro-batch "
        f"{plan.config.dataset_config.batch_size} × {plan.microbatches} micro-batches × data "
        f"{data}",
    ]
    for chunk, counts in enumerate(placement.counts):
        name = f"chunk {chunk}, " if placement.num_chunks > 1 else ""
        lines.append(f"  layers per stage, {name}stage 0 first: {_short(counts)}")
    if placement.noop_layers:
        lines.append(f"  layers without effect: {_short(sorted(placement.noop_layers))}")
    return lines


def _short(items: Iterable[object]) -> str:
    words = [str(item) for item in items]
    return " ".join(words if len(words) <= 64 else [*words[:60], "...", words[-1]])


def _groups(plan: Plan) -> list[str]:
    """How many groups of each kind there are, and the first of them."""
    parallel = plan.config.parallel_config
    data = parallel.data_parallel_size(plan.world_size)
    sizes = {
        "tp": parallel.tensor_model_parallel_size,
        "cp": parallel.context_parallel_size,
        "dp": data,
        "pp": parallel.pipeline_model_parallel_size,
    }
    generator = RankGenerator(sizes, parallel.order)
    lines = []
    for name, axes in (
        ("tensor", "tp"),
        ("context", "cp"),
        ("data", "dp"),
        ("data × context", "dp-cp"),
        ("pipeline", "pp"),
        ("model", "tp-pp"),
    ):
        groups = generator.get_ranks(axes)
        if len(groups[0]) > 1:
            lines.append(
                f"  {name} groups: {len(groups)} of {len(groups[0])} ranks, first "
                f"[{_short(groups[0])}]"
            )
    return lines


def _sizes(plan: Plan) -> list[str]:
    tokens = plan.config.global_batch_size(plan.world_size) * plan.config.model_config.seq_length
    return [
        f"  parameters: {plan.parameters:,} ({plan.parameters / 1e9:.3f} billion)",
        f"  operations per step: {plan.operations:.4g} ({tokens:,} tokens, "
        f"{plan.operations / tokens:.4g} per token)",
    ]


def shown_stages(plan: Plan) -> list[StagePlan]:
    """The stages a report lists."""
    if len(plan.stages) <= _MOST_STAGES:
        return list(plan.stages)
    fullest = max(plan.stages, key=lambda stage: stage.bytes_at_peak)
    chosen = {0: plan.stages[0], fullest.stage: fullest, len(plan.stages) - 1: plan.stages[-1]}
    return [chosen[number] for number in sorted(chosen)]


def _memory(plan: Plan) -> list[str]:
    lines = [
        "------------------ memory of a rank, MiB ------------------",
        "  stage | parameters | weights | gradients | optimizer | activations kept (in flight) | "
        "at most beside | peak",
    ]
    for stage in shown_stages(plan):
        state, kept = stage.state, stage.activations
        lines.append(
            f"  {stage.stage:5d} | {state.parameters:,} | {_mib(state.weights)} | "
            f"{_mib(state.gradients)} | {_mib(state.optimizer)} | {_mib(kept.kept)} "
            f"({kept.in_flight:.2f}) | {_mib(kept.temporary)} | {_mib(stage.bytes_at_peak)}"
        )
    fullest = max(plan.stages, key=lambda stage: stage.bytes_at_peak)
    if fullest.activations.is_evaluation_fuller:
        lines.append(
            f"  evaluations fill stage {fullest.stage}: {_mib(fullest.activations.evaluation)} MiB "
            f"for {plan.config.evaluation_micro_batch_size} sequences (--eval-micro-batch-size)"
        )
    limit = plan.device.memory_bytes
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines.append(
        f"  the fullest rank needs {plan.bytes_at_peak / _GIB:.2f} GiB: {verdict} into "
        f"{limit / _GIB:.0f} GiB (--device-memory)"
    )
    cache = max(stage.cache_bytes for stage in plan.stages)
    length = plan.config.model_config.seq_length
    lines.append(
        f"  text generation: KV cache of {cache:,} bytes per token on the fullest rank, "
        f"{_mib(cache * length)} MiB per sequence of {length}"
    )
    return lines


def _mib(size: float) -> str:
    return f"{size / _MIB:.1f}"


def _traffic(plan: Plan) -> list[str]:
    lines = [
        "------------- sent by a rank per step, MiB -----------------",
        "  stage | tensor | context | expert | pipeline | data",
    ]
    for stage in shown_stages(plan):
        sent = stage.traffic
        parts = (sent.tensor, sent.context, sent.expert, sent.pipeline, sent.data)
        lines.append(f"  {stage.stage:5d} | " + " | ".join(_mib(part) for part in parts))
    return lines


def _time(plan: Plan) -> list[str]:
    device = plan.device
    return [
        "------------------------- estimate ------------------------",
        f"  device: {device.tflops:g} TFLOP/s peak (--device-tflops), {device.efficiency:.0%} of "
        "it in matrix products",
        f"  pipeline bubble: {plan.timeline.bubble:.1%} of the passes' time",
        f"  step: {plan.step_seconds:.3g} s, of which {plan.exposed_seconds:.3g} s gradients, "
        "weights and optimizer",
        f"  model operations: {plan.operations / plan.step_seconds / plan.world_size / 1e12:.1f} "
        f"TFLOP/s per device, {plan.utilization:.1%} of the peak",
    ]
