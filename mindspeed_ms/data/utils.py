# SPDX-License-Identifier: Apache-2.0
"""Names of the three splits and the reading of ``--data-path`` and ``--split``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

import numpy as np

Blend = tuple[list[str], list[float] | None]
"""Prefixes of the token files and one weight per prefix; no weights means in proportion to size."""

SplitRange = tuple[float, float]
"""Fractions of the corpus, first included, last excluded."""


class Split(Enum):
    """The three uses of a corpus; the value is its place in every list of three."""

    train = 0
    valid = 1
    test = 2


def normalize(weights: Sequence[float]) -> list[float]:
    """Divide by the sum, in float64.

    Raises:
        ValueError: no weight, a negative or non-finite weight, or a sum of zero.
    """
    array = np.array(weights, dtype=np.float64)
    total = np.sum(array) if array.size else 0.0
    if total <= 0 or not np.isfinite(total) or (array < 0).any():
        raise ValueError(
            f"weights {list(weights)} must be non-negative, finite and not all zero; "
            "give at least one positive weight"
        )
    return (array / total).tolist()


def get_blend_from_list(blend: Sequence[str] | None) -> Blend | None:
    """Read the value of ``--data-path``: ``p1 p2 p3`` or ``w1 p1 w2 p2``.

    An odd count, or no number in any of the weight places, means a list without weights.

    Raises:
        ValueError: an empty list, or numbers in some of the weight places only.

    >>> get_blend_from_list(["0.3", "wiki", "0.7", "books"])
    (['wiki', 'books'], [0.3, 0.7])
    >>> get_blend_from_list(["wiki"])
    (['wiki'], None)
    """
    if blend is None:
        return None
    if not blend:
        raise ValueError("the list of data paths is empty; give at least one path prefix")
    unweighted = [prefix.strip() for prefix in blend]
    if len(blend) % 2 == 1:
        return unweighted, None
    weights = [_number_or_none(text) for text in blend[0::2]]
    known = [weight for weight in weights if weight is not None]
    if not known:
        return unweighted, None
    if len(known) < len(weights):
        raise ValueError(
            f"data path {list(blend)} has a number in only some of its weight places; "
            "write either 'w1 prefix1 w2 prefix2 ...' or 'prefix1 prefix2 ...'"
        )
    return [prefix.strip() for prefix in blend[1::2]], known


def _number_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def parse_and_normalize_split(split: str) -> list[float]:
    """Turn ``"949,50,1"`` into three fractions; missing ones are 0.

    Raises:
        ValueError: more than three numbers, something that is no plain number, or all zero.

    >>> parse_and_normalize_split("3,1")
    [0.75, 0.25, 0.0]
    """
    numbers = re.findall(r"[.0-9]+", split)
    rest = re.sub(r"[.0-9]+", "", split)
    values = [_number_or_none(number) for number in numbers]
    known = [value for value in values if value is not None]
    if re.search(r"[-+a-zA-Z]", rest) or len(known) < len(values) or not 1 <= len(known) <= 3:
        raise ValueError(
            f"split {split!r} must be one to three plain non-negative numbers for train, valid "
            "and test separated by commas, for example '949,50,1'"
        )
    return normalize(known + [0.0] * (len(Split) - len(known)))


def convert_split_vector_to_split_matrix(vector: Sequence[float]) -> list[SplitRange | None]:
    """Turn fractions into consecutive ranges; a split of width zero becomes None.

    >>> convert_split_vector_to_split_matrix([0.75, 0.25, 0.0])
    [(0, 0.75), (0.75, 1.0), None]
    """
    bounds: list[float] = [0]
    for fraction in vector:
        bounds.append(bounds[-1] + fraction)
    pairs = zip(bounds[:-1], bounds[1:], strict=True)
    return [(low, high) if high > low else None for low, high in pairs]


def split_bounds(split_range: SplitRange, num_units: int) -> tuple[int, int]:
    """First and last (excluded) unit of a range, rounding halves to even as Python does.

    >>> split_bounds((0, 0.949), 10)
    (0, 9)
    """
    low, high = split_range
    return int(round(low * float(num_units))), int(round(high * float(num_units)))


_PART = re.compile(r"(.+)@(\d*\.?\d+):(\d*\.?\d+)")


def part_of_corpus(prefix: str) -> tuple[str, SplitRange | None]:
    """The path of a corpus of which a part is read, and the part; None for all of it.

    >>> part_of_corpus("wiki@0.9:1")
    ('wiki', (0.9, 1.0))
    >>> part_of_corpus("wiki")
    ('wiki', None)
    """
    found = _PART.fullmatch(prefix)
    return (prefix, None) if found is None else (found[1], (float(found[2]), float(found[3])))
