# SPDX-License-Identifier: Apache-2.0
"""Attention over a ring of ranks: keys and values travel, queries stay.

In step i a rank computes with the keys of the rank i places before it, while they travel on to the
next rank and those for step i + 1 arrive. Results over the keys of different ranks are merged by
their log-sum-exp, so neither all keys nor all scores exist anywhere. Backward sends keys and values
round once more, and with them their gradients, one step behind: each rank adds its own part, and
after the last step they go to where they belong.

Shapes: s tokens of a rank: q [s, B, N, D], k [s, B, G, D], v [s, B, G, E], result [s, B, N * E].
Gradients are summed in fp32 whatever the storage type.

Source: Liu et al., 2023 (ring attention); chunks in zig-zag order as in Megatron-LM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mindspore import Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group, P2POp, Work
from mindspeed_ms.core.context_parallel.blocks import (
    SharedAttention,
    add_block_gradients,
    add_blocks,
    begin_result,
    sinks_gradient,
    stored,
)


class _Passing:
    """Tensors on their way to the next rank, and those that come from the one before.

    One batch per step: with sends and receives in one batch no order can deadlock, and messages
    between two ranks arrive in the order of the batches.
    """

    def __init__(self, group: Group, *sent: Tensor) -> None:
        size, rank = group.size, group.rank
        to, source = group.ranks[(rank + 1) % size], group.ranks[(rank - 1) % size]
        self.arriving = tuple(memory.empty(tensor.shape, tensor.dtype) for tensor in sent)
        transfers = [P2POp("isend", tensor, to, group) for tensor in sent]
        transfers += [P2POp("irecv", tensor, source, group) for tensor in self.arriving]
        self._works: Sequence[Work] = comm.batch_isend_irecv(transfers)

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors that have come."""
        for work in self._works:
            work.wait()
        return self.arriving


class _RingAttention(autograd.Function):
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
        keys: tuple[Tensor, ...] = (k, v)
        for step in range(group.size):
            passing = _Passing(group, *keys) if step < group.size - 1 else None
            add_blocks(shared, (group.rank - step) % group.size, q, keys, out, lse)
            if passing is not None:
                keys = passing.wait()
        out = stored(out, q)
        ctx.save_for_backward(q, k, v, out, lse, sinks)
        ctx.shared, ctx.group = shared, group
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, sinks = ctx.saved_tensors
        shared, group = ctx.shared, ctx.group
        dout, dq = memory.contiguous(dout), memory.zeros(q.shape)
        keys: tuple[Tensor, ...] = (k, v)
        grads: tuple[Tensor, ...] = ()
        for step in range(group.size):
            onward = keys if step < group.size - 1 else ()
            passing = _Passing(group, *grads, *onward)
            own = (memory.zeros(k.shape), memory.zeros(v.shape))
            owner = (group.rank - step) % group.size
            add_block_gradients(shared, owner, keys, (q, out, lse), dout, (dq, *own))
            arrived = passing.wait()
            for total, part in zip(own, arrived[: len(grads)], strict=False):
                ops.axpy_(total, part)
            keys, grads = arrived[len(grads) :], own
        dk, dv = _Passing(group, *grads).wait()
        dsinks = sinks_gradient(out, dout, lse, sinks)
        return stored(dq, q), stored(dk, k), stored(dv, v), dsinks, None, None


def ring_attention(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    shared: SharedAttention,
    group: Group,
) -> Tensor:
    """Attention of this rank's queries to the keys of all ranks.

    Args:
        q: [s, B, N, D].
        k: [s, B, G, D].
        v: [s, B, G, E].
        sinks: [N], a further logit of each head.
        shared: how the sequence is shared, and what hides keys.
        group: the ring.

    Returns:
        [s, B, N * E].

    Parallelism: collective over the group, in forward and in backward.
    """
    return _RingAttention.apply(q, k, v, sinks, shared, group)
