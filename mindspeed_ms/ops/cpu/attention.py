"""Attention in blocks, and the masked softmax of the unfused path."""

from __future__ import annotations

import ctypes
from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.cpu.dropout import Draw, draw_words
from mindspeed_ms.ops.cpu.library import STORAGE, library

Context = Any


class _Sizes(ctypes.Structure):
    """AttentionSizes of csrc/attention.h."""

    _fields_ = (
        ("queries", ctypes.c_int64),
        ("keys", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("mask_batch", ctypes.c_int64),
        ("causal", ctypes.c_bool),
        ("scale", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("threshold", ctypes.c_uint32),
        ("keep_scale", ctypes.c_float),
    )


class _Attention(autograd.Function):
    """Keeps q, k, v, the output and one fp32 number per query and head for backward."""

    @staticmethod
    def forward(
        ctx: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sizes: _Sizes
    ) -> Tensor:
        q, k, v = memory.contiguous(q), memory.contiguous(k), memory.contiguous(v)
        if mask is not None:
            mask = memory.contiguous(mask)
        seq, batch, heads, dim = q.shape
        out = memory.empty((seq, batch, heads * dim), q.dtype)
        lse = memory.empty((batch, heads, seq))
        library().attention_forward(
            STORAGE[q.dtype],
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            None if mask is None else mask.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            ctypes.addressof(sizes),
        )
        ctx.save_for_backward(q, k, v, mask, out, lse)
        ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out, lse = ctx.saved_tensors
        dout = memory.contiguous(dout)
        dq, dk, dv = (memory.empty(t.shape, t.dtype) for t in (q, k, v))
        library().attention_backward(
            STORAGE[q.dtype],
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            None if mask is None else mask.data_ptr(),
            out.data_ptr(),
            lse.data_ptr(),
            dout.data_ptr(),
            dq.data_ptr(),
            dk.data_ptr(),
            dv.data_ptr(),
            ctypes.addressof(ctx.sizes),
        )
        return dq, dk, dv, None, None


def attention(  # noqa: PLR0913 - the public signature
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool,
    mask: Tensor | None,
    dropout_p: float,
    generator: Generator | None,
) -> Tensor:
    """See ``ops.attention``."""
    seq, batch, heads, dim = q.shape
    keys, _, groups, _ = k.shape
    if mask is not None and mask.shape[1] != 1:
        raise ValueError(
            f"attention: mask {tuple(mask.shape)} differs between heads; it must be "
            f"[{batch} or 1, 1, {seq}, {keys}]"
        )
    mask_batch = 1 if mask is None else mask.shape[0]
    words: Draw = draw_words(dropout_p, generator, batch * heads * seq * keys)
    sizes = _Sizes(seq, keys, batch, heads, groups, dim, mask_batch, causal, scale, *words)
    return _Attention.apply(q, k, v, mask, sizes)


class _Softmax(autograd.Function):
    """Keeps the probabilities for backward."""

    @staticmethod
    def forward(
        ctx: Context, scores: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        scores = memory.contiguous(scores)
        rows, columns = (1, *scores.shape)[-2:]
        matrices = memory.num_elements(scores) // (rows * columns) if rows * columns else 0
        per_mask = 1
        if mask is not None:
            mask = memory.contiguous(mask)
            masks = memory.num_elements(mask) // (rows * columns) if rows * columns else 1
            per_mask = max(1, matrices // max(1, masks))
        probs = memory.empty(scores.shape, scores.dtype)
        library().softmax_forward(
            STORAGE[scores.dtype],
            scores.data_ptr(),
            None if mask is None else mask.data_ptr(),
            probs.data_ptr(),
            matrices,
            rows,
            columns,
            per_mask,
            causal,
            scale,
        )
        ctx.save_for_backward(probs)
        ctx.scale, ctx.rows = scale, matrices * rows
        return probs

    @staticmethod
    def backward(ctx: Context, dprobs: Tensor) -> tuple[Tensor | None, ...]:
        (probs,) = ctx.saved_tensors
        dprobs = memory.contiguous(dprobs)
        dscores = memory.empty(probs.shape, probs.dtype)
        library().softmax_backward(
            STORAGE[probs.dtype],
            probs.data_ptr(),
            dprobs.data_ptr(),
            dscores.data_ptr(),
            ctx.rows,
            probs.shape[-1],
            ctx.scale,
        )
        return dscores, None, None, None


def softmax(scores: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """See ``ops.softmax``."""
    return _Softmax.apply(scores, mask, causal, scale)
