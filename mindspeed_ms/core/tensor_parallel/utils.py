# SPDX-License-Identifier: Apache-2.0
"""Small arithmetic of splitting things over a group."""

from __future__ import annotations


def divide(numerator: int, denominator: int, what: str = "size") -> int:
    """Exact quotient.

    Raises:
        ValueError: there is a remainder.
    """
    if numerator % denominator:
        lower = numerator // denominator * denominator
        raise ValueError(
            f"{what} is {numerator}; it must be divisible by {denominator}: use "
            f"{lower or denominator} or {lower + denominator}"
        )
    return numerator // denominator


class VocabUtility:
    """Which rows of a vocabulary-sized tensor a rank holds."""

    @staticmethod
    def vocab_range_from_global_vocab_size(
        global_vocab_size: int, rank: int, world_size: int
    ) -> tuple[int, int]:
        """(first, one past last) row of a rank."""
        rows = divide(global_vocab_size, world_size, "vocabulary size")
        return rank * rows, (rank + 1) * rows
