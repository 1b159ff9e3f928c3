# SPDX-License-Identifier: Apache-2.0
"""Floating point operations of a training step, as the log line counts them."""

from __future__ import annotations

from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.planning.operations import step_operations


def flops_per_step(config: TransformerConfig, batch_size: int) -> float:
    """Operations of forward and backward over one global batch of sequences."""
    return step_operations(config, batch_size)


def tflops_per_rank(
    config: TransformerConfig, batch_size: int, seconds: float, world_size: int
) -> float:
    """Tera floating point operations per second and rank."""
    return flops_per_step(config, batch_size) / (seconds * 1.0e12 * world_size)
