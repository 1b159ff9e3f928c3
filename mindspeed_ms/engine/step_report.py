# SPDX-License-Identifier: Apache-2.0
"""What one iteration did."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one iteration did; losses are means over all micro-batches and data parallel ranks."""

    iteration: int
    losses: dict[str, float]
    grad_norm: float | None
    num_zeros: int | None
    learning_rate: float
    """That of the next step, which Megatron logs."""
    skipped: bool
    """The gradients overflowed: weights, moments and schedules stayed as they were."""
    seconds: float
    loss_scale: float = 1.0
    """Factor on the loss after the step."""
    layer_losses: dict[str, np.ndarray] = field(default_factory=dict)
    """Losses that layers add to the main one, each [layers], not weighed by their coefficients;
    means over micro-batches and data parallel ranks."""
    params_norm: float | None = None
    """L2 norm of all parameters after the step; None: it was not asked for."""
    max_attention_logit: float | None = None
    """Largest attention score of the step; None: it was not asked for."""
    optimizer_states: dict[str, float] = field(default_factory=dict)
    """Norms of moments and weights after the step, by the names of their curves; empty: they were
    not asked for."""
    batch_size: int = 0
    """Sequences of all ranks."""
    consumed_samples: int = 0
    """Sequences of all ranks since the beginning of the run."""
    used_learning_rate: float = 0.0
    """That of this step, which ``transformers`` logs."""
