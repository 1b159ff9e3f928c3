# SPDX-License-Identifier: Apache-2.0
"""Which tokens a rank holds, and with whom it exchanges what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.backend import comm
from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import ModelParallelConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.plan.sequence_slices import ContextParallelAlgo, positions_on_cp_rank


@dataclass(frozen=True, slots=True)
class ContextParallel:
    """This rank's place among those that share a sequence.

    The ranks form a grid: ``ulysses`` ranks exchange heads, so that together they hold what one
    rank of a plain ring would hold, and ``ring`` ranks exchange keys and values. With one kind of
    exchange only, the other group has this rank alone.
    """

    algo: ContextParallelAlgo
    group: Group
    """All ranks that share a sequence."""
    ulysses: Group
    ring: Group

    @property
    def size(self) -> int:
        """Ranks that share a sequence."""
        return self.group.size

    def positions(self, seq_length: int, rank: int | None = None) -> NDArray[np.int64]:
        """Places in the whole sequence of a rank's tokens, in the order it holds them.

        Args:
            seq_length: tokens of the whole sequence.
            rank: in the group; None for this one.
        """
        rank = self.group.rank if rank is None else rank
        return positions_on_cp_rank(seq_length, self.size, rank, self.algo, self.ulysses.size)

    def ring_positions(self, seq_length: int, rank: int | None = None) -> NDArray[np.int64]:
        """Places of the tokens that a rank of the ring holds together with its ulysses group.

        Args:
            seq_length: tokens of the whole sequence.
            rank: in the ring; None: this one.
        """
        rank = self.ring.rank if rank is None else rank
        if self.ring.size == 1:
            return np.arange(seq_length)
        return positions_on_cp_rank(seq_length, self.ring.size, rank)


def context_parallel(parallel: ModelParallelConfig) -> ContextParallel | None:
    """This rank's place; None when every rank holds whole sequences.

    Raises:
        RuntimeError: the groups were made for another way to share sequences.
    """
    if not parallel_state.model_parallel_is_initialized():
        return None
    group = parallel_state.get_context_parallel_group()
    if group.size == 1:
        return None
    ulysses, ring = parallel_state.get_hierarchical_context_parallel_groups()
    wanted, present = parallel.hierarchical_context_parallel_sizes, (ulysses.size, ring.size)
    if present != wanted and 1 in wanted:
        # One kind of exchange needs no further groups, whatever those that exist are for.
        alone = Group(ranks=(comm.get_rank(),), rank=0, name="this rank")
        ulysses, ring = (group, alone) if wanted[1] == 1 else (alone, group)
    elif present != wanted:
        raise RuntimeError(
            f"context parallel groups exist for (all-to-all, ring) sizes {present}, but the "
            f"configuration ({parallel.context_parallel_algo}) asks for {wanted}; give "
            f"hierarchical_context_parallel_sizes={wanted} to initialize_model_parallel"
        )
    return ContextParallel(parallel.context_parallel_algo, group, ulysses, ring)
