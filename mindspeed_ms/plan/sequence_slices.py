# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a sequence a context-parallel rank holds: the one place that decides it."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ContextParallelAlgo = Literal[
    "ulysses_cp_algo", "megatron_cp_algo", "hybrid_cp_algo", "kvallgather_cp_algo"
]

_STRETCHES_OF_ONE = ("megatron_cp_algo", "kvallgather_cp_algo")


def positions_on_cp_rank(
    seq_length: int,
    cp_size: int,
    cp_rank: int,
    algo: ContextParallelAlgo = "megatron_cp_algo",
    ulysses_degree: int | None = None,
) -> NDArray[np.int64]:
    """Places in the whole sequence of the tokens of one rank, in the order the rank holds them.

    ``megatron_cp_algo``: of 2 x cp_size chunks, rank r holds r and 2 x cp_size - 1 - r, so that all
    ranks have equal work under a causal mask; ``kvallgather_cp_algo`` likewise.
    ``ulysses_cp_algo``: one stretch per rank, so that no token has to move inside a sequence.
    ``hybrid_cp_algo``: chunks as for a ring of cp_size / ulysses_degree ranks, each cut into
    stretches for the neighbouring ranks that exchange heads.

    Args:
        seq_length: tokens of the whole sequence.
        cp_size: ranks that share it.
        cp_rank: this rank among them.
        algo: how attention crosses the shards.
        ulysses_degree: ranks of the all-to-all part of ``hybrid_cp_algo``.

    Raises:
        ValueError: the length cannot be shared evenly.

    Source: Megatron-LM core 0.12 ``get_batch_on_this_cp_rank`` (chunks of the ring), which cuts so
    for every kind of attention; MindSpeed (stretches for ulysses). Losses and gradients do not
    depend on it.

    >>> positions_on_cp_rank(8, 2, 1).tolist()
    [2, 3, 4, 5]
    >>> positions_on_cp_rank(8, 2, 1, "ulysses_cp_algo").tolist()
    [4, 5, 6, 7]
    """
    stretch = ulysses_degree or 1
    if algo == "ulysses_cp_algo":
        stretch = cp_size
    elif algo in _STRETCHES_OF_ONE:
        stretch = 1
    ring = cp_size // stretch
    chunks = 2 * ring if ring > 1 else 1
    if ring * stretch != cp_size or seq_length % (chunks * stretch):
        raise ValueError(
            f"sequence length {seq_length} cannot be shared by {cp_size} context-parallel ranks "
            f"with {algo}; it must be a multiple of {chunks * stretch}, and the ranks a multiple "
            f"of the ulysses degree ({stretch})"
        )
    pieces = np.arange(seq_length, dtype=np.int64).reshape(chunks, -1)
    ring_rank, place = divmod(cp_rank, stretch)
    held = pieces[[ring_rank, chunks - 1 - ring_rank]] if ring > 1 else pieces
    return held.reshape(stretch, -1)[place]


def stretches(places: NDArray[np.int64]) -> list[slice]:
    """Where the tokens of a rank follow each other.

    >>> stretches(np.array([2, 3, 8, 9]))
    [slice(0, 2, None), slice(2, 4, None)]
    """
    cuts = [0, *(np.flatnonzero(np.diff(places) != 1) + 1).tolist(), len(places)]
    return [slice(first, last) for first, last in pairwise(cuts)]


def keys_in_window(seq_length: int, ranks: int, left: int | None, right: int | None) -> float:
    """Tokens of other ranks whose stretch a rank of a ring sees some of, on average over the ranks.

    Args:
        seq_length: tokens of the whole sequence.
        ranks: of the ring.
        left: tokens before its own place that a query sees, None for all.
        right: tokens after it.
    """
    held = [positions_on_cp_rank(seq_length, ranks, rank) for rank in range(ranks)]
    spans = [[(p[part.start], p[part.stop - 1]) for part in stretches(p)] for p in held]
    seen = 0
    for rank, queries in enumerate(spans):
        for owner, keys in enumerate(spans):
            seen += sum(
                int(last - first + 1)
                for first, last in keys
                if rank != owner
                and any(
                    (left is None or last >= begin - left)
                    and (right is None or first <= end + right)
                    for begin, end in queries
                )
            )
    return seen / ranks
