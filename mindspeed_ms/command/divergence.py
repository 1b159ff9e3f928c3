# SPDX-License-Identifier: Apache-2.0
"""Where two training curves part, and what that looks like: plain arithmetic on their numbers.

What a cause leaves behind:

- schedule: the learning rates differ, and losses part one iteration later, not before;
- data order: losses differ from one iteration to the next for reasons of their own, so that their
  ups and downs have nothing in common; or they are the same up to an iteration and then jump;
- initial weights: losses differ from the first iteration on, but batches that are hard for one are
  hard for the other;
- rotary angles, epsilon of the norms: the same, and a small change of that setting moves losses and
  gradient norms in the same proportions over the iterations;
- optimizer, its epsilon: loss and gradient norm of the first iteration are the same, the later ones
  move as with a change of that setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NORM_FACTOR = 100.0
"""Gradient norms have that many times the tolerance of losses, relative to their size: logs print
three digits behind the point."""
RATE_TOLERANCE = 1e-5
"""Of learning rates, relative to the largest; logs print seven digits."""
SAME_BATCHES = 0.65
"""Correlation of the ups and downs from which on two curves have read the same batches."""
SAME_DIRECTION = 0.97
"""Cosine between what differs and what a change of a setting moves, from which on that is it."""
FEWEST = 12
"""Iterations without which ups and downs say nothing."""
JUMP = 20.0
"""A difference that is so many times those before has not grown, it has come."""


@dataclass(slots=True)
class Curve:
    """Numbers of iterations, by iteration."""

    losses: dict[int, float] = field(default_factory=dict)
    norms: dict[int, float] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    batches: dict[int, float] = field(default_factory=dict)


def common(first: Mapping[int, float], second: Mapping[int, float]) -> list[int]:
    """Iterations that both have."""
    return sorted(first.keys() & second.keys())


def parting(ours: Curve, theirs: Curve, tolerance: float) -> int | None:
    """The first iteration whose loss or gradient norm differs; None if none does.

    Args:
        ours: of this run.
        theirs: of the log.
        tolerance: of a loss, absolute, and relative where it is more than 1.
    """
    for iteration in common(ours.losses, theirs.losses):
        if loss_error(ours, theirs, iteration) > tolerance:
            return iteration
        if norm_error(ours, theirs, iteration) > NORM_FACTOR * tolerance:
            return iteration
    return None


def loss_error(ours: Curve, theirs: Curve, iteration: int) -> float:
    """Difference of the losses, relative where they are more than 1; infinite for NaN."""
    mine, other = ours.losses[iteration], theirs.losses[iteration]
    error = abs(mine - other) / max(1.0, abs(other))
    return error if np.isfinite(error) else float("inf")


def norm_error(ours: Curve, theirs: Curve, iteration: int) -> float:
    """Relative difference of the gradient norms beyond their printed digits; 0 if one has none."""
    if iteration not in ours.norms or iteration not in theirs.norms:
        return 0.0
    mine, other = ours.norms[iteration], theirs.norms[iteration]
    return max(0.0, abs(mine - other) - 5e-4) / max(abs(other), 1e-12)


def rate_parting(ours: Curve, theirs: Curve) -> int | None:
    """The first iteration with another learning rate."""
    largest = max(theirs.rates.values(), default=0.0) or 1.0
    for iteration in common(ours.rates, theirs.rates):
        if abs(ours.rates[iteration] - theirs.rates[iteration]) > RATE_TOLERANCE * largest:
            return iteration
    return None


def batch_parting(ours: Curve, theirs: Curve) -> int | None:
    """The first iteration with another global batch size."""
    return next(
        (
            one
            for one in common(ours.batches, theirs.batches)
            if ours.batches[one] != theirs.batches[one]
        ),
        None,
    )


def jumps(ours: Curve, theirs: Curve, parted: int, tolerance: float) -> bool:
    """Whether the difference came from nowhere, rather than grown over the iterations before."""
    before = [
        loss_error(ours, theirs, one) for one in common(ours.losses, theirs.losses) if one < parted
    ]
    return bool(before) and loss_error(ours, theirs, parted) > JUMP * max(*before, tolerance / JUMP)


def likeness(ours: Curve, theirs: Curve) -> float | None:
    """Correlation of the ups and downs of two loss curves; None if they are too short.

    What a loss has in common with the mean of its neighbours is taken away: both fall.
    """
    shared = common(ours.losses, theirs.losses)
    if len(shared) < FEWEST:
        return None
    mine, other = (_ups_and_downs([one.losses[it] for it in shared]) for one in (ours, theirs))
    scale = float(np.linalg.norm(mine) * np.linalg.norm(other))
    return float(mine @ other) / scale if scale else 0.0


def _ups_and_downs(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.array(values)
    found = array[1:-1] - (array[2:] + array[:-2]) / 2
    return found - found.mean()


def deviation(ours: Curve, other: Curve, iterations: Sequence[int]) -> NDArray[np.float64]:
    """What moved, over iterations: losses, then gradient norms, relative to their sizes."""
    found = []
    for mine, theirs in ((ours.losses, other.losses), (ours.norms, other.norms)):
        found += [
            (theirs[it] - mine[it]) / max(abs(mine[it]), 1e-12)
            for it in iterations
            if it in mine and it in theirs
        ]
    return np.array(found)


def direction(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Cosine between two deviations, whatever their sign; 0 where one is nothing."""
    if first.shape != second.shape:
        return 0.0
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return abs(float(first @ second)) / scale if scale else 0.0
