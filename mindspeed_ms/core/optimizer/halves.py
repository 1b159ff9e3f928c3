# SPDX-License-Identifier: Apache-2.0
"""fp32 copies of bf16 weights that keep only what the weights lack.

A bf16 weight is the upper half of its fp32 copy, rounded to nearest even. The lower half says by
itself whether that was rounded up, but for a tie: such places are listed. So the copy is rebuilt
to the bit.

Source: MindSpeed ``--reuse-fp32-param`` (what is shared).
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.core.optimizer.narrow import BLOCK

TIE = 0x8000
"""Lower half in the middle between two bf16 numbers."""


class LowerHalves:
    """Lower 16 bits of consecutive main parameters, beside the weights that hold the upper ones.

    The bits are taken apart on the host.

    Args:
        weights: bf16, flat; what is stored here fits them as they are then.
    """

    def __init__(self, weights: Tensor) -> None:
        self._weights, self._size = weights, memory.num_elements(weights)
        self.tensor = memory.zeros((self._size,), mstype.int16)
        self._ties: dict[int, np.ndarray] = {}
        """Start of a block -> places in it whose tie was rounded up."""
        self._staged: Tensor | None = None

    def wide(self, start: int, size: int) -> Tensor:
        """Main parameters from the start of a block on, in fp32."""
        bits = np.empty(size, np.uint32)
        for place in range(0, size, BLOCK):
            part = slice(place, min(place + BLOCK, size))
            bits[part] = self._rebuilt(start + place, part.stop - place)
        return memory.from_numpy(bits.view(np.float32))

    def _rebuilt(self, start: int, size: int) -> np.ndarray:
        low = self._part(self.tensor, start, size).view(np.uint16).astype(np.uint32)
        high = self._part(self._weights, start, size).view(np.uint16).astype(np.uint32)
        is_up = low > TIE
        ties = self._ties.get(start)
        if ties is not None:
            is_up[ties] = True
        return ((high - is_up) << 16) | low

    def _part(self, tensor: Tensor, start: int, size: int) -> np.ndarray:
        return memory.as_numpy(memory.view_of(tensor, start, (size,)))

    def narrow(self, start: int, wide: Tensor) -> None:
        """Store main parameters, from the start of a block on; the weights are written before."""
        bits = memory.as_numpy(memory.contiguous(wide)).view(np.uint32)
        for place in range(0, len(bits), BLOCK):
            part = bits[place : place + BLOCK]
            low = part & np.uint32(0xFFFF)
            is_odd = (part >> 16) & np.uint32(1) == 1
            ties = np.flatnonzero((low == TIE) & is_odd)
            self._ties.pop(start + place, None)
            if len(ties):
                self._ties[start + place] = ties
            stored = memory.from_numpy(low.astype(np.uint16).view(np.int16))
            memory.copy_(memory.view_of(self.tensor, start + place, (len(part),)), stored)

    def view(self, start: int, size: int) -> Tensor:
        """Main parameters for a checkpoint, an fp32 copy; see ``NarrowState.view``."""
        if self._staged is None:
            self._staged = self.wide(0, self._size)
        return memory.view_of(self._staged, start, (size,))

    def settle(self) -> None:
        """Take over what was written into the copy."""
        if self._staged is not None:
            ops.copy_cast_(self._weights, self._staged)
            self.narrow(0, self._staged)
        self._staged = None

    def forget(self) -> None:
        """Let go of the copy."""
        self._staged = None
