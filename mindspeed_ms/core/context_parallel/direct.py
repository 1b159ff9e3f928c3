# SPDX-License-Identifier: Apache-2.0
"""Attention with keys and values sent straight to the ranks that see them.

For attention with a window: a rank of a ring would pass on keys of which neither it nor the next
ranks see any. In step i a rank hands its keys to the rank i places behind it, and gets those of the
rank i places before, while it computes with the keys of the step before. Stretches of keys that the
receiver does not see are not sent; every rank knows all places, so both sides agree. In backward
the gradients of keys go straight back to their owner.

Shapes: as in ``ring``. Gradients are summed in fp32, in the order of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from mindspore import Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group, P2POp, Work
from mindspeed_ms.core.context_parallel.blocks import (
    Block,
    SharedAttention,
    add_block,
    add_gradients_of_block,
    begin_result,
    rows_of,
    sinks_gradient,
    stored,
)

Pair = tuple[Tensor, Tensor]
"""k and v, or their gradients, of one stretch of tokens."""


def _seen(shared: SharedAttention, rank: int, owner: int) -> list[tuple[slice, list[Block]]]:
    """Stretches of keys of ``owner`` that ``rank`` sees, in order, with its blocks of scores."""
    blocks = sorted(shared.blocks(owner, rank), key=lambda block: block.columns.start)
    return [(columns, list(group)) for columns, group in groupby(blocks, lambda b: b.columns)]


class _Step:
    """Transfers of one step: to the rank ``step`` places behind, from the one before this rank.

    Pairs of tensors go one way and, in backward, their gradients the other way round.
    """

    def __init__(self, shared: SharedAttention, group: Group, step: int, *, back: bool) -> None:
        behind, before = (group.rank + step) % group.size, (group.rank - step) % group.size
        self.owner = before
        self.serves = [columns for columns, _ in _seen(shared, behind, group.rank)]
        self.sees = _seen(shared, group.rank, before)
        self._group = group
        self._to, self._source = (before, behind) if back else (behind, before)
        self._works: Sequence[Work] = ()

    def post(self, sent: Sequence[Pair], arriving: Sequence[Pair]) -> None:
        """Start sending and receiving."""
        to, source = (self._group.ranks[peer] for peer in (self._to, self._source))
        leaving = [tensor for pair in sent for tensor in pair]
        coming = [tensor for pair in arriving for tensor in pair]
        transfers = [P2POp("isend", tensor, to, self._group) for tensor in leaving]
        transfers += [P2POp("irecv", tensor, source, self._group) for tensor in coming]
        self._sent = sent  # alive until they have left
        self._works = comm.batch_isend_irecv(transfers)

    def wait(self) -> None:
        """All have come, and left."""
        for work in self._works:
            work.wait()


def _parts(tensors: Pair, columns: Sequence[slice]) -> list[Pair]:
    k, v = tensors
    return [(rows_of(k, part), rows_of(v, part)) for part in columns]


def _space(like: Pair, columns: Sequence[slice], *, gradients: bool) -> list[Pair]:
    """Room for some stretches of tokens: fp32 zeros for gradients."""

    def room(tensor: Tensor, part: slice) -> Tensor:
        shape = (part.stop - part.start, *tensor.shape[1:])
        return memory.zeros(shape) if gradients else memory.empty(shape, tensor.dtype)

    return [(room(like[0], part), room(like[1], part)) for part in columns]


class _Keys:
    """Keys and values of the ranks, one step after the other, the next ones already on their way.

    Step 0 is the rank itself.
    """

    def __init__(self, shared: SharedAttention, group: Group, k: Tensor, v: Tensor) -> None:
        self._shared, self._group, self._own = shared, group, (k, v)

    def __iter__(self) -> Any:
        """Yields (step, owner, [(keys of a stretch, its blocks)])."""
        rank, size = self._group.rank, self._group.size
        here = _seen(self._shared, rank, rank)
        current = list(zip(_parts(self._own, [part for part, _ in here]), here, strict=True))
        owner = rank
        for number in range(size):
            coming = self._post(number + 1) if number + 1 < size else None
            yield number, owner, [(keys, blocks) for keys, (_, blocks) in current]
            if coming is not None:
                step, arriving = coming
                step.wait()
                owner, current = step.owner, list(zip(arriving, step.sees, strict=True))

    def _post(self, number: int) -> tuple[_Step, list[Pair]]:
        step = _Step(self._shared, self._group, number, back=False)
        arriving = _space(self._own, [columns for columns, _ in step.sees], gradients=False)
        step.post(_parts(self._own, step.serves), arriving)
        return step, arriving


class _DirectAttention(autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - the context and the arguments of ``ring_attention``
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        shared: SharedAttention,
        group: Group,
    ) -> Tensor:
        q, k, v = memory.contiguous(q), memory.contiguous(k), memory.contiguous(v)
        out, lse = begin_result(q, v, sinks)
        for _, owner, stretches in _Keys(shared, group, k, v):
            for keys, blocks in stretches:
                for block in blocks:
                    add_block(shared, block, owner, q, keys, out, lse)
        out = stored(out, q)
        ctx.save_for_backward(q, k, v, out, lse, sinks)
        ctx.shared, ctx.group = shared, group
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, sinks = ctx.saved_tensors
        shared, group = ctx.shared, ctx.group
        dout, dq = memory.contiguous(dout), memory.zeros(q.shape)
        own = (memory.zeros(k.shape), memory.zeros(v.shape))
        returning: list[tuple[_Step, list[Pair]]] = []
        for number, owner, stretches in _Keys(shared, group, k, v):
            columns = [blocks[0].columns for _, blocks in stretches]
            parts = _parts(own, columns) if number == 0 else _space((k, v), columns, gradients=True)
            for (keys, blocks), grads in zip(stretches, parts, strict=True):
                for block in blocks:
                    add_gradients_of_block(
                        shared, block, owner, keys, (q, out, lse), dout, (dq, *grads)
                    )
            if number:
                step = _Step(shared, group, number, back=True)
                arriving = _space((k, v), step.serves, gradients=True)
                step.post(parts, arriving)
                returning.append((step, arriving))
        for step, arriving in returning:
            step.wait()
            for whole, part in zip(_parts(own, step.serves), arriving, strict=True):
                for total, addend in zip(whole, part, strict=True):
                    ops.axpy_(total, addend)
        dk, dv = own
        dsinks = sinks_gradient(out, dout, lse, sinks)
        return stored(dq, q), stored(dk, k), stored(dv, v), dsinks, None, None


def direct_attention(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    shared: SharedAttention,
    group: Group,
) -> Tensor:
    """Attention of this rank's queries to the keys of all ranks; arguments as ``ring_attention``.

    Parallelism: messages between the ranks of the group that see each other's keys, in forward and
    in backward.
    """
    return _DirectAttention.apply(q, k, v, sinks, shared, group)
