# SPDX-License-Identifier: Apache-2.0
"""Dropout of activations whose tokens are shared."""

from __future__ import annotations

from mindspeed_ms.backend.random import Generator
from mindspeed_ms.core.context_parallel.layout import ContextParallel


class _ShareOfDraws(Generator):
    """Draws of one rank out of draws that are made for all ranks of a group at once."""

    __slots__ = ("_rank", "_size", "_source")

    def __init__(self, source: Generator, size: int, rank: int) -> None:
        super().__init__(*source.get_state())
        self._source, self._size, self._rank = source, size, rank

    def reserve(self, count: int) -> tuple[int, int]:
        """(seed, offset) of this rank's draw; the source moves past those of all ranks."""
        seed, start = self._source.reserve(count * self._size)
        self.set_state(self._source.get_state())
        return seed, start + count * self._rank


def share_of_draws(generator: Generator, context: ContextParallel | None) -> Generator:
    """A stream whose draws differ between the ranks that share a sequence, in lockstep.

    All of them have the same stream, because attention drops by the place of a score in the whole.
    Ranks that hold consecutive tokens (``ulysses_cp_algo``) drop what one rank would drop, unless
    sequence parallelism cuts their tokens further.
    """
    if context is None:
        return generator
    return _ShareOfDraws(generator, context.size, context.group.rank)
