# SPDX-License-Identifier: Apache-2.0
"""Figures of a run under Megatron's names: arithmetic and names, nothing else.

Source: Megatron-LM ``training_log``, ``evaluate_and_print_results``, ``track_moe_metrics`` and
``track_mtp_metrics`` (tags, x axes, and which flag governs which).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mindspeed_ms.config import TrainingConfig
from mindspeed_ms.engine.layer_losses import is_balancing
from mindspeed_ms.engine.log_lines import IntervalReport
from mindspeed_ms.engine.step_report import StepReport

BY_SAMPLES = " vs samples"
"""Ending of the tags whose x axis counts sequences; that of all others counts iterations."""

LARGEST_EXPONENT = 20.0
"""Perplexities above are cut off, as in Megatron's line."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Values by tag at one place of the run."""

    iteration: int
    consumed_samples: int
    by_iteration: dict[str, float]
    by_samples: dict[str, float]
    """Tags without their ending."""


def step_figures(
    report: StepReport,
    training: TrainingConfig,
    *,
    world_size: int,
    memory: Mapping[str, int] | None = None,
    per_layer: bool = False,
) -> Figures:
    """Figures of one iteration.

    Args:
        report: what it did.
        training: the flags that choose figures.
        world_size: ranks of the run.
        memory: bytes of the rank that writes, as ``device.memory_stats`` tells; None: left out.
        per_layer: also the balancing losses of every layer.
    """
    layers = report.layer_losses
    both: dict[str, float] = {}
    if training.log_learning_rate_to_tensorboard:
        both["learning-rate"] = report.learning_rate
    both["batch-size"] = report.batch_size
    both |= {name: value for name, value in report.losses.items() if name not in layers}
    if training.log_loss_scale_to_tensorboard:
        both["loss-scale"] = report.loss_scale
    if training.log_world_size_to_tensorboard:
        both["world-size"] = world_size
    for tag, value in (
        ("grad-norm", report.grad_norm),
        ("num-zeros", report.num_zeros),
        ("params-norm", report.params_norm),
    ):
        if value is not None:
            both[tag] = value
    alone = dict(_memory_figures(memory or {}))
    alone |= {name: value for name, value in report.losses.items() if name in layers}
    alone |= report.optimizer_states
    if report.max_attention_logit is not None:
        alone["max_attention_logit"] = report.max_attention_logit
    if per_layer:
        alone |= dict(_layer_figures(report))
    return Figures(report.iteration, report.consumed_samples, both | alone, both)


def _memory_figures(memory: Mapping[str, int]) -> Iterator[tuple[str, float]]:
    tags = {
        "reserved": "mem-reserved-bytes",
        "current": "mem-allocated-bytes",
        "peak": "mem-max-allocated-bytes",
    }
    for name, tag in tags.items():
        if name in memory:
            yield tag, memory[name]


def _layer_figures(report: StepReport) -> Iterator[tuple[str, float]]:
    for name, values in report.layer_losses.items():
        if is_balancing(name):
            for layer, value in enumerate(values.tolist()):
                yield f"moe/{name}_layer_{layer}", value


def interval_figures(
    line: IntervalReport,
    training: TrainingConfig,
    timers: Mapping[str, float] | None = None,
    more: Mapping[str, float] | None = None,
) -> Figures:
    """Figures of a log line.

    Args:
        line: what it says.
        training: the flags that choose figures.
        timers: name -> most seconds of a rank per iteration.
        more: further figures by tag.
    """
    alone = dict(more or {})
    if line.joules_per_rank is not None and line.watts_per_rank is not None:
        alone |= {"iter-energy/gpu": line.joules_per_rank, "power/gpu": line.watts_per_rank}
    if training.log_timers_to_tensorboard:
        alone["iteration-time"] = line.seconds_per_iteration
        if line.tflops_per_rank is not None:
            alone["throughput"] = line.tflops_per_rank
        alone |= {f"{name}-time": seconds for name, seconds in (timers or {}).items()}
    return Figures(line.iteration, line.consumed_samples, alone, {})


def validation_figures(
    losses: Mapping[str, float], place: tuple[int, int], label: str, *, with_ppl: bool
) -> Figures:
    """Figures of one evaluation.

    Args:
        losses: means by name.
        place: iterations and samples so far.
        label: ``validation``, with what tells several sets apart, or ``test``.
        with_ppl: the perplexities as well.
    """
    both: dict[str, float] = {}
    for name, value in losses.items():
        both[f"{name} {label}"] = value
        if with_ppl:
            both[f"{name} {label} ppl"] = math.exp(min(LARGEST_EXPONENT, value))
    return Figures(*place, both, both)
