# SPDX-License-Identifier: Apache-2.0
"""The lines that tools parse: formats only, no state.

Source: Megatron-LM ``training_log`` and ``evaluate_and_print_results`` (exact formats), and the
``Epoch: ..., Step: ...`` line of the user guide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalReport:
    """What happened since the last line."""

    iteration: int
    train_iters: int
    consumed_samples: int
    seconds_per_iteration: float
    learning_rate: float
    global_batch_size: int
    losses: dict[str, float]
    """Mean of each loss over the iterations that were not skipped."""
    loss_scale: float
    grad_norm: float | None
    num_zeros: int | None
    params_norm: float | None
    tflops_per_rank: float | None
    skipped_iterations: int
    nan_iterations: int
    epoch: int
    step_in_epoch: int
    true_loss: float | None = None
    """Mean of the main loss over all iterations, skipped ones included; None: none was."""
    max_attention_logit: float | None = None
    joules_per_rank: float | None = None
    """Energy of an iteration."""

    @property
    def watts_per_rank(self) -> float | None:
        """Power in the iterations."""
        joules = self.joules_per_rank
        return None if joules is None else joules / self.seconds_per_iteration


def megatron_line(report: IntervalReport, now: datetime) -> str:
    """Megatron's line. A loss that is NaN stays in it."""
    parts = [
        f" [{now:%Y-%m-%d %H:%M:%S}] iteration {report.iteration:8d}/{report.train_iters:8d}",
        f"consumed samples: {report.consumed_samples:12d}",
        f"elapsed time per iteration (ms): {report.seconds_per_iteration * 1000.0:.1f}",
    ]
    if report.tflops_per_rank is not None:
        parts.append(f"throughput per GPU (TFLOP/s/GPU): {report.tflops_per_rank:.1f}")
    if report.joules_per_rank is not None:
        parts.append(f"energy per GPU (J/iter/GPU): {report.joules_per_rank:.1f}")
        parts.append(f"power per GPU (W/GPU): {report.watts_per_rank:.1f}")
    parts.append(f"learning rate: {report.learning_rate:.6E}")
    parts.append(f"global batch size: {report.global_batch_size:5d}")
    parts += [f"{name}: {value:.6E}" for name, value in report.losses.items()]
    parts.append(f"loss scale: {report.loss_scale:.1f}")
    if report.grad_norm is not None:
        parts.append(f"grad norm: {report.grad_norm:.3f}")
    if report.num_zeros is not None:
        parts.append(f"num zeros: {report.num_zeros}")
    if report.params_norm is not None:
        parts.append(f"params norm: {report.params_norm:.3f}")
    if report.max_attention_logit is not None:
        parts.append(f"max attention logit: {report.max_attention_logit:.3f}")
    parts.append(f"number of skipped iterations: {report.skipped_iterations:3d}")
    parts.append(f"number of nan iterations: {report.nan_iterations:3d}")
    return " | ".join(parts) + " |"


def guide_line(report: IntervalReport) -> str:
    """The user guide's line; the loss is the true one in skipped iterations too."""
    loss = report.true_loss
    if loss is None:
        loss = report.losses.get("lm loss", math.nan)
    return (
        f"INFO - Epoch: {report.epoch}, Step: {report.step_in_epoch}, Loss: {loss:.16f}, "
        f"Time: {report.seconds_per_iteration * 1000.0:.2f} ms"
    )


SHORT_WIDTH = 120
"""Characters of a short line, at most."""


def short_line(report: IntervalReport, seq_length: int) -> str:
    """A line for a terminal: what one looks at, tokens per second, and the time left.

    Further losses are in it as far as there is room.

    Args:
        report: of the interval.
        seq_length: tokens of a sequence.
    """
    seconds = report.seconds_per_iteration
    tokens = report.global_batch_size * seq_length / seconds
    losses = dict(report.losses)
    parts = [f"{report.iteration:{len(str(report.train_iters))}d}/{report.train_iters}"]
    parts.append(f"lm loss {losses.pop('lm loss', math.nan):.4f}")
    parts.append(f"lr {report.learning_rate:.2e}")
    if report.grad_norm is not None:
        parts.append(f"grad norm {report.grad_norm:.3f}")
    parts.append(f"{tokens:,.0f} tokens/s")
    parts.append(f"{_duration((report.train_iters - report.iteration) * seconds)} left")
    for count, name in ((report.skipped_iterations, "skipped"), (report.nan_iterations, "NaN")):
        parts += [f"{count} {name}"] if count else []
    line = " | ".join(parts)
    for name, value in losses.items():
        longer = f"{line} | {name} {value:.4f}"
        line = longer if len(longer) <= SHORT_WIDTH else line
    return line


def _duration(seconds: float) -> str:
    """Days, hours, minutes and seconds: ``2d 03:15:40``, ``15:40``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = (
        f"{hours:02d}:{minutes:02d}:{rest:02d}" if days or hours else f"{minutes:02d}:{rest:02d}"
    )
    return f"{days}d {clock}" if days else clock


def layer_loss_lines(iteration: int, losses: Mapping[str, np.ndarray]) -> list[str]:
    """One line per loss that layers add, with a value for every layer."""
    return [
        f" {name} of each layer at iteration {iteration} | "
        + " | ".join(f"layer {layer}: {value:.6E}" for layer, value in enumerate(values, 1))
        + " |"
        for name, values in losses.items()
    ]


def validation_lines(prefix: str, losses: dict[str, float], suffix: str = "") -> list[str]:
    """Megatron's validation line between two rules of its length plus one.

    ``suffix`` tells several validation sets apart.
    """
    line = f" validation{suffix} loss at {prefix} | "
    for name, value in losses.items():
        perplexity = math.exp(min(20.0, value))
        line += f"{name} value: {value:.6E} | {name} PPL: {perplexity:.6E} | "
    rule = "-" * (len(line) + 1)
    return [rule, line, rule]
