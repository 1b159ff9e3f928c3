"""Where each parameter lies in a flat buffer: arithmetic on shapes only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Place of one parameter in a flat buffer, in elements."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.start + math.prod(self.shape)


def flat_layout(
    shapes: Sequence[tuple[str, tuple[int, ...]]], alignment: int = 1
) -> tuple[list[Slot], int]:
    """Slots in the given order and the size of the buffer, in elements.

    Args:
        shapes: name and local shape of each parameter.
        alignment: every slot starts at a multiple of this many elements.
    """
    slots, end = [], 0
    for name, shape in shapes:
        start = -(-end // alignment) * alignment
        slots.append(Slot(name=name, start=start, shape=tuple(shape)))
        end = slots[-1].end
    return slots, end
