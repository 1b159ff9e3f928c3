# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values out of one projection."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory

Context = Any


class _SplitQKV(autograd.Function):
    """Three dense copies of column ranges; backward writes them side by side again."""

    @staticmethod
    def forward(
        ctx: Context, mixed: Tensor, groups: int, queries: int, channels: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.sizes = (groups, queries, channels)
        rows = _grouped(mixed, groups, queries, channels)
        seq, batch = mixed.shape[:2]
        q = memory.empty((seq, batch, groups * queries, channels), mixed.dtype)
        k, v = (memory.empty((seq, batch, groups, channels), mixed.dtype) for _ in range(2))
        memory.as_numpy(q).reshape(rows[..., :queries, :].shape)[...] = rows[..., :queries, :]
        memory.as_numpy(k)[...] = rows[..., queries, :]
        memory.as_numpy(v)[...] = rows[..., queries + 1, :]
        return q, k, v

    @staticmethod
    def backward(ctx: Context, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        groups, queries, channels = ctx.sizes
        seq, batch = dq.shape[:2]
        dmixed = memory.empty((seq, batch, groups * (queries + 2) * channels), dq.dtype)
        rows = _grouped(dmixed, groups, queries, channels)
        rows[..., :queries, :] = _array(dq).reshape(seq, batch, groups, queries, channels)
        rows[..., queries, :] = _array(dk)
        rows[..., queries + 1, :] = _array(dv)
        return dmixed, None, None, None


def _array(tensor: Tensor) -> np.ndarray:
    return memory.as_numpy(memory.contiguous(tensor))


def _grouped(mixed: Tensor, groups: int, queries: int, channels: int) -> np.ndarray:
    seq, batch = mixed.shape[:2]
    return _array(mixed).reshape(seq, batch, groups, queries + 2, channels)


def split_qkv(
    mixed: Tensor, num_groups: int, queries_per_group: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ops.split_qkv``."""
    return _SplitQKV.apply(mixed, num_groups, queries_per_group, head_dim)
