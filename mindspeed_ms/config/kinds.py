# SPDX-License-Identifier: Apache-2.0
"""Kinds of values: the annotations that say which numbers and texts a field takes.

Three rules hold for every field without being written: a float is finite, a whole number fits into
64 bits, a text is not empty and is valid Unicode without NUL. An annotation of this module adds a
range, or allows emptiness.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Range:
    """Ends of the numbers a field takes, None for an open end.

    Attributes:
        low: the smallest.
        high: the largest.
        above: the value must be larger than this, not equal.
        below: the value must be smaller than this, not equal.

    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def problem(self, value: float) -> str | None:
        """Return what is wrong with a value and how to mend it, None when it fits."""
        if (self.low, self.high) == (0, 1) and not 0 <= value <= 1:
            return "must lie between 0 and 1; choose a value in that range"
        if self.low is not None and value < self.low:
            return f"must be at least {self.low}; set it to {self.low} or more"
        if self.above is not None and value <= self.above:
            return f"must be larger than {self.above}; choose a larger value"
        if self.high is not None and value > self.high:
            return f"must be at most {self.high}; choose a smaller value"
        if self.below is not None and value >= self.below:
            return f"must be smaller than {self.below}; choose a smaller value"
        return None


@dataclass(frozen=True, slots=True)
class Form:
    """What a text, or a list of words, must look like.

    Attributes:
        fits: whether a value does.
        words: how to write it.

    """

    fits: Callable[[Any], bool]
    words: str

    def problem(self, value: Any) -> str | None:  # noqa: ANN401
        """Return how to write a value that does not fit, None when it does."""
        return None if self.fits(value) else f"must be {self.words}"


class MayBeEmpty:
    """Mark of a text or list that may be empty."""


MOST_LAYERS = 100_000
"""More layers than any model has: plans list every layer."""

MOST_RANKS = 1_000_000
"""More ranks than any cluster has: plans list every rank."""

MOST_EXPERTS = 1_000_000
"""More experts than any model has: plans list every expert of a rank."""

MOST_WORKERS = 1024
"""More processes or threads than any host runs for one rank."""

_NUMBER = re.compile(r"\d+\.?\d*|\.\d+", re.ASCII)


def _is_split(text: str) -> bool:
    """One to three numbers, whatever separates them, that are not all zero."""
    numbers = re.findall(r"[.0-9]+", text)
    is_plain = not re.search(r"[-+a-zA-Z]", text) and 1 <= len(numbers) <= 3
    return is_plain and all(map(_NUMBER.fullmatch, numbers)) and any(map(float, numbers))


def _is_blend(words: tuple[str, ...]) -> bool:
    """Prefixes, or a weight before each; weights are finite and not all zero.

    Whether every second word is a weight is told where the paths are read.
    """
    weights = [_number(word) for word in words[0::2]] if len(words) % 2 == 0 else []
    known = [weight for weight in weights if weight is not None]
    if len(known) < len(weights) or not known:
        return True
    return min(known) >= 0 and 0 < sum(known) < math.inf


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _is_batch_schedule(text: str) -> bool:
    stage = r"\d+(\.\d+)?[KMBTkmbt]?:[1-9]\d*"
    return re.fullmatch(rf"\s*{stage}(\s+{stage})*\s*", text, re.ASCII) is not None


Split: TypeAlias = Annotated[
    str, Form(_is_split, "one to three numbers that are not all 0, for example 949,50,1")
]
"""Shares of train, validation and test."""

Blend: TypeAlias = Annotated[
    tuple[str, ...],
    Form(_is_blend, "prefixes, or a weight of at least 0 before each, for example 0.7 a 0.3 b"),
]
"""Corpora, with weights or not."""

BatchSchedule: TypeAlias = Annotated[
    str, Form(_is_batch_schedule, "a list of TOKENS:SIZE, for example 0:16 2.4B:320")
]
"""Global batch sizes from token counts on."""

Epsilon: TypeAlias = Annotated[float, Range(above=0, high=1)]
"""A small addend that keeps a divisor from 0."""

Count: TypeAlias = Annotated[int, Range(low=1)]
"""A whole number from 1."""

Natural: TypeAlias = Annotated[int, Range(low=0)]
"""A whole number from 0."""

Layers: TypeAlias = Annotated[int, Range(low=1, high=MOST_LAYERS)]
"""A number of layers."""

Ranks: TypeAlias = Annotated[int, Range(low=1, high=MOST_RANKS)]
"""A number of ranks."""

Experts: TypeAlias = Annotated[int, Range(low=1, high=MOST_EXPERTS)]
"""A number of experts, or of groups of them."""

Workers: TypeAlias = Annotated[int, Range(low=0, high=MOST_WORKERS)]
"""A number of processes, 0 for none of one's own."""

Threads: TypeAlias = Annotated[int, Range(low=1, high=MOST_WORKERS)]
"""A number of threads."""

TokenId: TypeAlias = Annotated[int, Range(low=-1)]
"""Number of a token, -1 for none."""

Seed: TypeAlias = Annotated[int, Range(low=0, high=2**32 - 1)]
"""Start of random streams."""

Positive: TypeAlias = Annotated[float, Range(above=0)]
"""A number above 0."""

Factor: TypeAlias = Annotated[float, Range(low=1)]
"""How many times larger something becomes."""

NonNegative: TypeAlias = Annotated[float, Range(low=0)]
"""A number from 0."""

Share: TypeAlias = Annotated[float, Range(low=0, high=1)]
"""A probability or a part of a whole."""

PositiveShare: TypeAlias = Annotated[float, Range(above=0, high=1)]
"""A part of a whole that is not nothing."""

DecayRate: TypeAlias = Annotated[float, Range(low=0, below=1)]
"""Weight of the past in a moving average."""

MaybeEmptyText: TypeAlias = Annotated[str, MayBeEmpty()]
"""A text that may be empty."""
