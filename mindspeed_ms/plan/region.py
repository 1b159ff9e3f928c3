# SPDX-License-Identifier: Apache-2.0
"""Which part of a global tensor a local one holds: arithmetic only.

A region names, for every dimension, ordered runs of global indices; the local tensor is the product
of the runs, put together in their order. That covers a plain split, the split of stacked matrices
([gate_r; up_r]), experts over ranks, and query, key and value rows that lie apart in another file
format. A checkpoint says which region of which tensor each stored piece is; whoever loads says
which region it needs; what both share is copied.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Stack: TypeAlias = int | tuple[int, ...]
"""Stacked matrices that are split one by one: their number, if they are equal, or their sizes."""

Run = tuple[int, int]
"""First global index and length."""

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Start and size, one number per dimension."""


@dataclass(frozen=True, slots=True)
class Region:
    """Part of a global tensor.

    Raises:
        ValueError: a run that is empty or begins below 0.
    """

    runs: tuple[tuple[Run, ...], ...]
    """For every dimension the runs of global indices, in the order of the local tensor."""

    def __post_init__(self) -> None:
        """Check the runs."""
        for dim, runs in enumerate(self.runs):
            for start, length in runs:
                if start < 0 or length < 1:
                    raise ValueError(
                        f"dimension {dim} of a region has the run ({start}, {length}); runs begin "
                        "at 0 or later and hold at least one index"
                    )

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        """All of a tensor."""
        return cls(tuple(((0, int(size)),) for size in shape))

    @classmethod
    def of_part(
        cls, shape: Sequence[int], dim: int, part: int, parts: int, stride: Stack = 1
    ) -> Region:
        """Part ``part`` of ``parts`` along a dimension of the full shape.

        With ``stride`` the dimension holds that many stacked matrices, split one by one, or
        matrices of these sizes.

        Raises:
            ValueError: the dimension does not divide.
        """
        size = shape[dim]
        if isinstance(stride, tuple):
            if sum(stride) != size or any(one % parts for one in stride):
                raise ValueError(
                    f"dimension {dim} of size {size} does not split into {parts} parts of matrices "
                    f"of sizes {stride}; use sizes that divide"
                )
            starts = itertools.accumulate((0, *stride[:-1]))
            each = [
                (start + part * (one // parts), one // parts)
                for start, one in zip(starts, stride, strict=True)
            ]
            return cls.whole(shape).with_runs(dim, each)
        if size % (parts * stride):
            raise ValueError(
                f"dimension {dim} of size {size} does not split into {parts} parts of {stride} "
                "stacked matrices; use a size that divides"
            )
        length = size // (parts * stride)
        runs = tuple(((part + index * parts) * length, length) for index in range(stride))
        return cls.whole(shape).with_runs(dim, runs)

    def with_runs(self, dim: int, runs: Iterable[Run]) -> Region:
        """The same region with other runs in one dimension."""
        changed = list(self.runs)
        changed[dim] = _joined(runs)
        return Region(tuple(changed))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the local tensor."""
        return tuple(sum(length for _, length in runs) for runs in self.runs)

    @property
    def size(self) -> int:
        """Number of local elements."""
        return math.prod(self.shape)

    @property
    def bounds(self) -> tuple[Run, ...]:
        """Lowest and one past the highest global index, by dimension."""
        return tuple(
            (min(run[0] for run in runs), max(run[0] + run[1] for run in runs))
            for runs in self.runs
        )

    def is_whole(self, shape: Sequence[int]) -> bool:
        """Whether this is all of a tensor of this shape."""
        return self == Region.whole(shape)

    def boxes(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """(global start, local start, size) of each box without gaps."""
        placed = []
        for runs in self.runs:
            ends = list(itertools.accumulate((length for _, length in runs), initial=0))
            placed.append(
                [
                    (start, local, length)
                    for (start, length), local in zip(runs, ends[:-1], strict=True)
                ]
            )
        for chosen in itertools.product(*placed):
            yield (
                tuple(item[0] for item in chosen),
                tuple(item[1] for item in chosen),
                tuple(item[2] for item in chosen),
            )

    def select(self, dim: int, start: int, size: int) -> Region:
        """The region that local indices [start, start + size) of a dimension hold."""
        runs, position = [], 0
        for first, length in self.runs[dim]:
            low, high = max(start, position), min(start + size, position + length)
            if low < high:
                runs.append((first + low - position, high - low))
            position += length
        return self.with_runs(dim, runs)

    def to_json(self) -> list[list[list[int]]]:
        """Plain lists."""
        return [[list(run) for run in runs] for runs in self.runs]

    @classmethod
    def from_json(cls, value: Sequence[Sequence[Sequence[int]]]) -> Region:
        """Inverse of ``to_json``."""
        return cls(tuple(tuple((int(a), int(b)) for a, b in runs) for runs in value))


def _joined(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Neighbouring runs as one."""
    joined: list[Run] = []
    for start, length in runs:
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((start, length))
    return tuple(joined)


def boxes_of_range(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[Box, int]]:
    """Boxes of a row-major tensor whose elements are [start, stop), each contiguous in memory.

    Yields:
        The box, and the flat position of its first element. A range that begins or ends within
        rows needs several boxes.
    """
    if start >= stop:
        return
    if not shape:
        yield ((), ()), 0
        return
    row = math.prod(shape[1:])
    rest = tuple(shape[1:])
    first, last = start // row, (stop - 1) // row
    head_partial = start % row != 0 or (first == last and stop - start < row)
    tail_partial = stop % row != 0 and first != last
    if head_partial:
        end = min(stop, (first + 1) * row)
        for (low, size), flat in boxes_of_range(rest, start - first * row, end - first * row):
            yield ((first, *low), (1, *size)), flat + first * row
        first += 1
    whole = last + 1 - first - int(tail_partial)
    if whole > 0:
        yield ((first, *(0 for _ in rest)), (whole, *rest)), first * row
    if tail_partial:
        for (low, size), flat in boxes_of_range(rest, 0, stop - last * row):
            yield ((last, *low), (1, *size)), flat + last * row


@dataclass(frozen=True, slots=True)
class Span:
    """Elements [start, stop), counted row by row, of the local tensor of a region."""

    region: Region
    start: int
    stop: int

    @classmethod
    def all_of(cls, region: Region) -> Span:
        """Every element of the region."""
        return cls(region, 0, region.size)

    @property
    def is_complete(self) -> bool:
        """Whether the span holds the whole region."""
        return self.start == 0 and self.stop == self.region.size

    def blocks(self) -> Iterator[Block]:
        """Boxes of the span that are contiguous in memory and in the global tensor's index grid."""
        shape = self.region.shape
        region_boxes = list(self.region.boxes())
        for (low, size), flat in boxes_of_range(shape, self.start, self.stop):
            for global_start, local_start, length in region_boxes:
                cut = intersect((low, size), (local_start, length))
                if cut is not None:
                    begin, extent = cut
                    yield Block(
                        memory=(low, size),
                        flat=flat - self.start,
                        local=(tuple(b - m for b, m in zip(begin, low, strict=True)), extent),
                        globally=tuple(
                            g + b - s
                            for g, b, s in zip(global_start, begin, local_start, strict=True)
                        ),
                    )


@dataclass(frozen=True, slots=True)
class Block:
    """Part of a box of memory that is also a box of the global tensor."""

    memory: Box
    """The contiguous box of the local tensor it lies in."""
    flat: int
    """First element of that box, counted from the start of the span."""
    local: Box
    """The part of the box, counted from the box's own start."""
    globally: tuple[int, ...]
    """Global index of the first element."""


def intersect(first: Box, second: Box) -> Box | None:
    """The box that two boxes share, None if there is none."""
    start = tuple(map(max, first[0], second[0]))
    size = tuple(
        min(a + m, b + n) - s
        for a, m, b, n, s in zip(first[0], first[1], second[0], second[1], start, strict=True)
    )
    return None if any(extent < 1 for extent in size) else (start, size)
