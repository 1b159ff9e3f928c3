# SPDX-License-Identifier: Apache-2.0
"""Whether the layers get the tokens that a step has for them, where ranks share sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mindspeed_ms.core import run_state


class CutAgainError(ValueError):
    """A model cuts sequences of which it got this rank's part."""


@dataclass(slots=True)
class Handed:
    """Set by a step around its model."""

    length: int | None = None
    """Tokens of a sequence on this rank; None: not known."""
    may_differ: bool = False
    """Sequences may be of other lengths, too, but not uncut and not cut twice."""
    neighbours: tuple[int, ...] | None = None
    """Positions of this rank if parts were contiguous, where they are not; None: not compared."""


def current() -> Handed:
    """Of the run."""
    return run_state.member_of_current(Handed)


def check_length(length: int, ranks: int) -> None:
    """Compare what reached the layers with what the step has on this rank.

    Args:
        length: tokens of a sequence.
        ranks: that share it.

    Raises:
        CutAgainError: it is a part of the part.
        ValueError: it is of another length.
    """
    expected = current().length
    if expected is None or length == expected:
        return
    uncut = expected * ranks
    if current().may_differ and length * ranks != expected and length != uncut:
        return
    if length * ranks == expected:
        raise CutAgainError(
            f"the model passes {length} of this rank's {expected} tokens of a sequence to its "
            "layers: it cuts what is cut; hand it whole sequences, or take its own cut out"
        )
    raise ValueError(
        f"the model passes {length} tokens of a sequence to its layers, but this rank of {ranks} "
        f"has {expected}; cut whole sequences with get_batch_on_this_cp_rank"
    )


def check_positions(first_row: Callable[[], Sequence[int]]) -> None:
    """Compare positions that reached the layers with parts that a ring does not have, once.

    Args:
        first_row: reads the positions of the first sequence.

    Raises:
        ValueError: they are those of a contiguous part.

    """
    expected = current()
    neighbours, expected.neighbours = expected.neighbours, None
    if neighbours is not None and tuple(first_row()) == neighbours:
        raise ValueError(
            f"the model passes positions {neighbours[0]} to {neighbours[-1]} to its layers, a "
            "contiguous part of the sequence, which megatron_cp_algo does not have on a rank; cut "
            "with get_batch_on_this_cp_rank, or use ulysses_cp_algo"
        )
