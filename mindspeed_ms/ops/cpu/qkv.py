# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values out of one projection."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.cpu.library import native

Context = Any


class _SplitQKV(autograd.Function):
    """Three dense copies of column ranges; backward writes them side by side again."""

    @staticmethod
    def forward(
        ctx: Context, mixed: Tensor, groups: int, queries: int, channels: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed = mixed.contiguous()
        seq, batch = mixed.shape[:2]
        q = memory.empty((seq, batch, groups * queries, channels), mixed.dtype)
        k = memory.empty((seq, batch, groups, channels), mixed.dtype)
        v = memory.empty((seq, batch, groups, channels), mixed.dtype)
        item = memory.numpy_dtype(mixed.dtype).itemsize
        ctx.sizes = (seq * batch, groups, queries * channels * item, channels * item)
        ctx.shape = mixed.shape
        native.split_qkv(mixed.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr(), *ctx.sizes)
        return q, k, v

    @staticmethod
    def backward(ctx: Context, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk, dv = dq.contiguous(), dk.contiguous(), dv.contiguous()
        dmixed = memory.empty(ctx.shape, dq.dtype)
        native.join_qkv(dmixed.data_ptr(), dq.data_ptr(), dk.data_ptr(), dv.data_ptr(), *ctx.sizes)
        return dmixed, None, None, None


def split_qkv(
    mixed: Tensor, num_groups: int, queries_per_group: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ops.split_qkv``."""
    return _SplitQKV.apply(mixed, num_groups, queries_per_group, head_dim)
