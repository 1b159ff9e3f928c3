# SPDX-License-Identifier: Apache-2.0
"""Counter-based random numbers: a (seed, offset) pair names every draw.

A generator never holds hidden state beyond its counter, so a draw can be replayed in recompute, and
a checkpoint stores two integers. Kernels turn (seed, offset, element index) into bits with
Philox4x32-10 (Salmon et al., 2011), the same on every device and with every number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MASK_64 = (1 << 64) - 1


@dataclass(slots=True)
class Generator:
    """A stream of draws; each draw reserves a range of the counter."""

    seed: int
    offset: int = 0

    def reserve(self, count: int) -> tuple[int, int]:
        """(seed, offset) for a draw of ``count`` numbers; the counter moves past them."""
        start = self.offset
        self.offset = (start + count) & _MASK_64
        return self.seed & _MASK_64, start

    def get_state(self) -> tuple[int, int]:
        """(seed, offset), enough to continue the stream."""
        return self.seed, self.offset

    def set_state(self, state: tuple[int, int]) -> None:
        """Continue from a state that ``get_state`` returned."""
        self.seed, self.offset = int(state[0]), int(state[1])


def normal_stream(seed: int) -> np.random.RandomState:
    """Host stream for weight initialisation.

    Its uniform words are those of torch's CPU generator for the same seed (MT19937), which is what
    Megatron's ``--use-cpu-initialization`` draws from.
    """
    return np.random.RandomState(seed & 0xFFFFFFFF)
