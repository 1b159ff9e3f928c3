# SPDX-License-Identifier: Apache-2.0
"""Who writes what: every piece once, by one of the ranks that hold it."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_ms.backend import comm
from mindspeed_ms.core.dist_checkpointing.live_state import LiveTensor
from mindspeed_ms.formats import dtypes

Description = tuple[str, object, int, int, int]
"""Name, runs of the region, range of elements, bytes: equal on ranks that hold the same."""


def describe(tensors: Sequence[LiveTensor]) -> list[Description]:
    """What this rank could write."""
    return [
        (
            tensor.key,
            tensor.span.region.runs,
            tensor.span.start,
            tensor.span.stop,
            tensor.num_elements * dtypes.width(tensor.dtype),
        )
        for tensor in tensors
        if not tensor.is_shared
    ]


def assign(described: Sequence[Sequence[Description]]) -> list[set[Description]]:
    """Share out the pieces: largest first, each to the holder with the least to write so far.

    Args:
        described: by rank.

    Returns:
        By rank, what it writes. The same on every rank that calls it with the same lists.
    """
    holders: dict[Description, list[int]] = {}
    for rank, pieces in enumerate(described):
        for piece in pieces:
            holders.setdefault(piece, []).append(rank)
    loads = [0] * len(described)
    mine: list[set[Description]] = [set() for _ in described]
    for piece in sorted(holders, key=lambda item: (-item[4], item[0], item[1:4])):
        owner = min(holders[piece], key=lambda rank: (loads[rank], rank))
        loads[owner] += piece[4]
        mine[owner].add(piece)
    return mine


def owned_by_this_rank(tensors: Sequence[LiveTensor]) -> list[LiveTensor]:
    """The tensors this rank writes.

    Parallelism: collective over the world.
    """
    described = describe(tensors)
    everyones = comm.all_gather_object(described) if comm.get_world_size() > 1 else [described]
    chosen = assign(everyones)[comm.get_rank()]
    owned = []
    for tensor in tensors:
        if tensor.is_shared:
            continue
        (description,) = describe([tensor])
        if description in chosen:
            chosen.discard(description)
            owned.append(tensor)
    return owned
