# SPDX-License-Identifier: Apache-2.0
"""Optimizer states in 16 bits, computed on in fp32 a block at a time."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms import ops
from mindspeed_ms.backend import memory

BLOCK = 1 << 16
"""Elements that are widened at a time, and that share a scale in float16."""

TOP = 14
"""Binary exponent of a block's largest number in float16, whose own largest is below 2^16."""


class NarrowState:
    """One state of consecutive parameters, in bf16 or float16.

    float16 has no room for squares of small gradients: each block is kept times a power of two,
    which brings its largest number near float16's. Such factors are exact, so what is widened and
    narrowed again has the same bits.

    Args:
        size: elements.
        dtype: bf16 or float16.
    """

    def __init__(self, size: int, dtype: mstype.Type) -> None:
        self.tensor = memory.zeros((size,), dtype)
        self._size, self._is_scaled = size, dtype == mstype.float16
        self._exponents = np.zeros(-(-size // BLOCK), np.int64)
        self._staged: Tensor | None = None

    def wide(self, start: int, size: int) -> Tensor:
        """Elements from the start of a block on, in fp32."""
        wide = memory.empty((size,))
        for place in range(0, size, BLOCK):
            length = min(BLOCK, size - place)
            part = memory.view_of(wide, place, (length,))
            ops.copy_cast_(part, memory.view_of(self.tensor, start + place, (length,)))
            if self._is_scaled:
                ops.scale_(part, math.ldexp(1.0, -int(self._exponents[(start + place) // BLOCK])))
        return wide

    def narrow(self, start: int, wide: Tensor) -> None:
        """Store fp32 elements, from the start of a block on; they may be destroyed."""
        size = memory.num_elements(wide)
        for place in range(0, size, BLOCK):
            length = min(BLOCK, size - place)
            part = memory.view_of(wide, place, (length,))
            if self._is_scaled:
                exponent = _exponent(part)
                self._exponents[(start + place) // BLOCK] = exponent
                ops.scale_(part, math.ldexp(1.0, exponent))
            ops.copy_cast_(memory.view_of(self.tensor, start + place, (length,)), part)

    def view(self, start: int, size: int) -> Tensor:
        """Elements for a checkpoint: those in bf16 themselves, of float16 an fp32 copy.

        What a checkpoint wrote into the copy counts after ``settle``.
        """
        if not self._is_scaled:
            return memory.view_of(self.tensor, start, (size,))
        if self._staged is None:
            self._staged = self.wide(0, self._size)
        return memory.view_of(self._staged, start, (size,))

    def settle(self) -> None:
        """Take over what was written into the copy."""
        if self._staged is not None:
            self.narrow(0, self._staged)
        self._staged = None

    def forget(self) -> None:
        """Let go of the copy."""
        self._staged = None


def _exponent(values: Tensor) -> int:
    """Power of two that brings the largest number to about 2^TOP."""
    numbers = memory.as_numpy(memory.contiguous(values))
    largest = float(np.abs(numbers).max(initial=0.0))
    if not 0.0 < largest < math.inf:
        return 0
    # frexp of what float16 keeps of it: rounding up to the next power must not change the answer.
    return min(
        TOP - math.frexp(float(np.float16(math.frexp(largest)[0])))[1] - _power(largest), 120
    )


def _power(value: float) -> int:
    return math.frexp(value)[1]
