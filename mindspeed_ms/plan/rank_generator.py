# SPDX-License-Identifier: Apache-2.0
"""Which ranks form which group: arithmetic on numbers only, for any world size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

AXES = ("tp", "cp", "ep", "dp", "pp")


class RankGenerator:
    """A grid of ranks whose axes vary in a given order, leftmost fastest.

    With order ``tp-cp-ep-dp-pp`` rank = tp + TP * (cp + CP * (ep + EP * (dp + DP * pp))).

    Args:
        sizes: size of each axis; a missing axis has size 1.
        order: axis names joined by ``-``; axes of size 1 may be left out.

    Raises:
        ValueError: an unknown or repeated axis, a size below 1, or an axis larger than 1 that the
            order does not name.

    Source: Megatron-LM core 0.12 ``parallel_state.RankGenerator`` (behaviour).
    """

    def __init__(self, sizes: Mapping[str, int], order: str = "tp-cp-ep-dp-pp") -> None:
        self.axes = tuple(order.split("-")) if order else ()
        if not self.axes or any(axis not in AXES for axis in self.axes):
            raise ValueError(
                f"order is {order!r}; it must join names out of {', '.join(AXES)} by '-', "
                "for example 'tp-cp-ep-dp-pp'"
            )
        if len(set(self.axes)) != len(self.axes):
            raise ValueError(f"order is {order!r}; each axis may appear only once")
        for axis, size in sizes.items():
            if axis not in AXES:
                raise ValueError(f"axis {axis!r} is unknown; use one of {', '.join(AXES)}")
            if size < 1:
                raise ValueError(f"size of axis {axis} is {size}; it must be at least 1")
            if size > 1 and axis not in self.axes:
                raise ValueError(
                    f"order is {order!r} but axis {axis} has size {size}; add '{axis}' to the order"
                )
        self.sizes = {axis: sizes.get(axis, 1) for axis in self.axes}
        self.world_size = math.prod(self.sizes.values())
        self._strides = {}
        stride = 1
        for axis in self.axes:
            self._strides[axis] = stride
            stride *= self.sizes[axis]

    def get_ranks(self, axes: str) -> list[tuple[int, ...]]:
        """Groups of ranks that differ only along ``axes`` (joined by ``-``, e.g. ``"dp-cp"``).

        Members are in rank order, groups in order of their first rank; together they hold every
        rank once.

        Raises:
            ValueError: an axis that is neither in the order nor of size 1.
        """
        inside = axes.split("-")
        for axis in inside:
            if axis not in AXES:
                raise ValueError(f"axis {axis!r} is unknown; use one of {', '.join(AXES)}")
        varying = [axis for axis in self.axes if axis in inside]
        fixed = [axis for axis in self.axes if axis not in inside]
        members = self._offsets(varying)
        return [tuple(base + member for member in members) for base in self._offsets(fixed)]

    def coordinates(self, rank: int) -> dict[str, int]:
        """Position of a rank on every axis."""
        return {axis: rank // stride % self.sizes[axis] for axis, stride in self._strides.items()}

    def _offsets(self, axes: list[str]) -> list[int]:
        """Rank offsets of all positions on some axes, ascending."""
        ranges = [range(self.sizes[axis]) for axis in axes]
        return sorted(
            sum(self._strides[axis] * index for axis, index in zip(axes, position, strict=True))
            for position in itertools.product(*ranges)
        )
