# SPDX-License-Identifier: Apache-2.0
"""All-to-all between shares of the sequence and shares of the heads.

Before attention each of u ranks holds s tokens with all heads, during it all u * s tokens with 1/u
of the heads. The exchange is its own adjoint the other way round.

Source: Jacobs et al., 2023 (DeepSpeed Ulysses).
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group, Work


class _Exchange:
    """One all-to-all under way."""

    def __init__(self, sent: Tensor, group: Group) -> None:
        self.received = memory.empty(sent.shape, sent.dtype)
        self._work: Work | None = comm.all_to_all_single(
            self.received, sent, group=group, async_op=True
        )

    def wait(self) -> Tensor:
        if self._work is not None:
            self._work.wait()
        return self.received


def _start_by_heads(tensor: Tensor, group: Group) -> _Exchange:
    """[s, B, N, D]: send every rank its heads."""
    s, b, n, d = tensor.shape
    split = memory.contiguous(tensor).view((s, b, group.size, n // group.size, d))
    return _Exchange(memory.permuted(split, (2, 0, 1, 3, 4)), group)  # [u, s, B, N / u, D]


def _whole_sequence(exchange: _Exchange) -> Tensor:
    """-> [u * s, B, N / u, D]: ranks hold consecutive tokens."""
    received = exchange.wait()
    u, s, *rest = received.shape
    return received.view((u * s, *rest))


def _start_by_tokens(tensor: Tensor, group: Group) -> _Exchange:
    """[u * s, B, N / u, D]: send every rank its tokens."""
    rows, *rest = tensor.shape
    return _Exchange(memory.contiguous(tensor).view((group.size, rows // group.size, *rest)), group)


def _whole_heads(exchange: _Exchange) -> Tensor:
    """-> [s, B, N, D]."""
    received = exchange.wait()
    u, s, b, n, d = received.shape
    return memory.permuted(received, (1, 2, 0, 3, 4)).view((s, b, u * n, d))


class _ShareHeads(autograd.Function):
    """Each of the tensors [s, B, N, D] -> [u * s, B, N / u, D]; they travel while others pack."""

    @staticmethod
    def forward(ctx: Any, group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        exchanges = [_start_by_heads(tensor, group) for tensor in tensors]
        return tuple(_whole_sequence(exchange) for exchange in exchanges)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        exchanges = [_start_by_tokens(grad, ctx.group) for grad in grads]
        return (None, *(_whole_heads(exchange) for exchange in exchanges))


class _ShareSequence(autograd.Function):
    """[u * s, B, N / u, D] -> [s, B, N, D]."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _whole_heads(_start_by_tokens(tensor, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _whole_sequence(_start_by_heads(grad, ctx.group)), None


class _RepeatHeads(autograd.Function):
    """[s, B, G, D] -> [s, B, G * copies, D], each head ``copies`` times side by side."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, copies: int) -> Tensor:
        ctx.copies = copies
        s, b, g, d = tensor.shape
        stacked = memory.empty((copies, s, b, g, d), tensor.dtype)
        for copy in range(copies):
            memory.copy_(stacked[copy], tensor)
        return memory.permuted(stacked, (1, 2, 3, 0, 4)).view((s, b, g * copies, d))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        s, b, heads, d = grad.shape
        groups = heads // ctx.copies
        split = memory.contiguous(grad).view((s, b, groups, ctx.copies, d))
        parts = memory.permuted(split, (3, 0, 1, 2, 4))
        total = memory.zeros((s, b, groups, d))
        for copy in range(ctx.copies):
            ops.axpy_(total, parts[copy])
        result = memory.empty(total.shape, grad.dtype)
        ops.copy_cast_(result, total)
        return result, None


def share_heads(q: Tensor, k: Tensor, v: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange tokens for heads.

    Key/value groups that are fewer than the ranks are sent to every rank whose queries read them.

    Args:
        q: [s, B, N, D].
        k: [s, B, G, D].
        v: [s, B, G, E].
        group: u ranks; u divides N, and divides G or is a multiple of it.

    Returns:
        The same with u * s tokens and N / u heads, max(G / u, 1) groups.

    Parallelism: collective over the group, in forward and in backward.
    """
    groups = k.shape[2]
    if groups % group.size:
        k, v = (_RepeatHeads.apply(tensor, group.size // groups) for tensor in (k, v))
    return _ShareHeads.apply(group, q, k, v)


def share_sequence(tensor: Tensor, group: Group) -> Tensor:
    """[u * s, B, N / u, D] -> [s, B, N, D]; the way back of ``share_heads``.

    Parallelism: collective over the group, in forward and in backward.
    """
    return _ShareSequence.apply(tensor, group)
