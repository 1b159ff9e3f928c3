# SPDX-License-Identifier: Apache-2.0
"""T5's tokens for gaps in a text."""

from __future__ import annotations

MOST = 1 << 20
"""Sentinels; ten thousand times what any model has, and still made in a second."""


def sentinels(count: int, name: str = "extra_ids") -> list[str]:
    """``<extra_id_0>`` and those after it.

    Args:
        count: how many.
        name: what says so, for the error.

    Raises:
        ValueError: a count that no vocabulary has.
    """
    if not isinstance(count, int) or not 0 <= count <= MOST:
        raise ValueError(f"{name} is {count!r}; it must be a whole number from 0 to {MOST}")
    return [f"<extra_id_{number}>" for number in range(count)]
