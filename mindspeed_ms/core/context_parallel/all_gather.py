# SPDX-License-Identifier: Apache-2.0
"""Attention with the keys and values of all ranks gathered first.

Simpler than a ring and with two collectives instead of many messages, but every rank holds all keys
and values of one layer while it computes. Only its own are kept for backward, which gathers again;
gradients are reduced to their owners in fp32.

Shapes: as in ``ring``.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core.context_parallel.blocks import (
    SharedAttention,
    add_block_gradients,
    add_blocks,
    begin_result,
    rows_of,
    sinks_gradient,
    stored,
)


def _gathered(group: Group, *tensors: Tensor) -> list[Tensor]:
    """The tensors of all ranks, in rank order: [s, ...] -> [ranks * s, ...]."""
    results, works = [], []
    for tensor in tensors:
        shape = (group.size * tensor.shape[0], *tensor.shape[1:])
        results.append(memory.empty(shape, tensor.dtype))
        works.append(comm.all_gather_into_tensor(results[-1], tensor, group, async_op=True))
    for work in works:
        if work is not None:
            work.wait()
    return results


def _part(tensor: Tensor, rank: int, length: int) -> Tensor:
    return rows_of(tensor, slice(rank * length, (rank + 1) * length))


class _AllGatherAttention(autograd.Function):
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
        length = k.shape[0]
        keys = _gathered(group, k, v)
        out, lse = begin_result(q, v, sinks)
        for owner in range(group.size):
            add_blocks(shared, owner, q, [_part(t, owner, length) for t in keys], out, lse)
        out = stored(out, q)
        ctx.save_for_backward(q, k, v, out, lse, sinks)
        ctx.shared, ctx.group = shared, group
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, sinks = ctx.saved_tensors
        shared, group, length = ctx.shared, ctx.group, k.shape[0]
        dout, dq = memory.contiguous(dout), memory.zeros(q.shape)
        all_k, all_v = _gathered(group, k, v)
        all_dk, all_dv = memory.zeros(all_k.shape), memory.zeros(all_v.shape)
        for owner in range(group.size):
            keys = (_part(all_k, owner, length), _part(all_v, owner, length))
            grads = (dq, _part(all_dk, owner, length), _part(all_dv, owner, length))
            add_block_gradients(shared, owner, keys, (q, out, lse), dout, grads)
        dk, dv = memory.empty(k.shape), memory.empty(v.shape)
        for own, whole in ((dk, all_dk), (dv, all_dv)):
            comm.reduce_scatter_tensor(own, whole, group=group)
        dsinks = sinks_gradient(out, dout, lse, sinks)
        return stored(dq, q), stored(dk, k), stored(dv, v), dsinks, None, None


def all_gather_attention(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    shared: SharedAttention,
    group: Group,
) -> Tensor:
    """Attention of this rank's queries to the keys of all ranks; arguments as ``ring_attention``.

    Parallelism: collective over the group, in forward and in backward.
    """
    return _AllGatherAttention.apply(q, k, v, sinks, shared, group)
