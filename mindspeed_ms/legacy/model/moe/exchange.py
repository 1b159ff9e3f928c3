# SPDX-License-Identifier: Apache-2.0
"""Rows on their way between ranks, on the tape. Legend: n rows, H hidden size.

An exchange has a begin and an end, so that other work can be done while rows travel. In backward
the end begins the way back and the begin waits for it; what was computed in between is then
computed in between again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group, P2POp, Work


@dataclass(slots=True)
class _Trip:
    """Rows that have left and have not been waited for."""

    group: Group
    splits: tuple[tuple[int, ...], tuple[int, ...]]
    """Rows sent to and received from each rank on the way there."""
    point_to_point: bool
    in_background: bool
    """Other work is done meanwhile."""
    works: list[Work] = field(default_factory=list)
    sent: Tensor | None = None
    """Kept until it has left."""
    arriving: Tensor | None = None

    def depart(self, rows: Tensor, sent: tuple[int, ...], received: tuple[int, ...]) -> Tensor:
        """Start an all-to-all; the result is undefined until ``arrive``."""
        rows = memory.contiguous(rows)
        result = memory.empty((sum(received), rows.shape[1]), rows.dtype)
        self.sent, self.arriving = rows, result
        if self.point_to_point:
            self.works = _transfers(result, rows, received, sent, self.group)
        else:
            work = comm.all_to_all_single(
                result, rows, received, sent, self.group, async_op=self.in_background
            )
            self.works = [] if work is None else [work]
        return result

    def arrive(self) -> Tensor:
        """Wait for the rows."""
        for work in self.works:
            work.wait()
        result = self.arriving
        self.works, self.sent, self.arriving = [], None, None
        assert result is not None, "rows depart before they arrive"
        return result


def _transfers(
    result: Tensor,
    rows: Tensor,
    received: tuple[int, ...],
    sent: tuple[int, ...],
    group: Group,
) -> list[Work]:
    """The same exchange as single sends and receives."""
    ops: list[P2POp] = []
    start_in = start_out = 0
    for rank, peer in enumerate(group.ranks):
        incoming = result[start_in : start_in + received[rank]]
        outgoing = rows[start_out : start_out + sent[rank]]
        start_in, start_out = start_in + received[rank], start_out + sent[rank]
        if rank == group.rank:
            if sent[rank]:
                memory.copy_(incoming, outgoing)
            continue
        if received[rank]:
            ops.append(P2POp("irecv", incoming, peer, group))
        if sent[rank]:
            ops.append(P2POp("isend", outgoing, peer, group))
    return comm.batch_isend_irecv(ops)


class _Begin(autograd.Function):
    """Rows leave. Backward: take the gradients that ``_End`` has sent back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, trip: _Trip) -> Tensor:
        ctx.trip = trip
        return trip.depart(rows, *trip.splits)

    @staticmethod
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor, None]:
        return ctx.trip.arrive(), None


class _End(autograd.Function):
    """Rows have arrived. Backward: their gradients leave."""

    @staticmethod
    def forward(ctx: Any, travelling: Tensor, trip: _Trip) -> Tensor:
        ctx.trip = trip
        trip.arrive()
        return travelling.view(travelling.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        sent, received = ctx.trip.splits
        ctx.trip.depart(grad, received, sent)
        return grad, None  # a placeholder: the tape wants the shape of what arrived


def all_to_all(
    rows: Tensor,
    sent: tuple[int, ...],
    received: tuple[int, ...],
    group: Group,
    *,
    meanwhile: Callable[[], None] | None = None,
    point_to_point: bool = False,
) -> Tensor:
    """Send blocks of rows to the ranks of a group and return the blocks they send.

    Args:
        rows: [n, H], the blocks for all ranks one behind the other.
        sent: rows for each rank.
        received: rows from each rank.
        group: the ranks.
        meanwhile: called while rows travel, in forward; what it records is also computed while
            gradients travel back.
        point_to_point: single transfers instead of the collective.
    """
    if group.size == 1:
        if meanwhile is not None:
            meanwhile()
        return rows
    trip = _Trip(group, (sent, received), point_to_point, meanwhile is not None)
    travelling = _Begin.apply(rows, trip)
    if meanwhile is not None:
        meanwhile()
    return _End.apply(travelling, trip)
