"""Attention in blocks, and the masked softmax of the unfused path."""

from __future__ import annotations

import ctypes
from typing import Any

from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.attention_call import AttentionCall, ScoreDropout
from mindspeed_ms.ops.cpu.dropout import NO_DROPOUT, Draw
from mindspeed_ms.ops.cpu.library import STORAGE, library
from mindspeed_ms.ops.portable.dropout import threshold

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
        ("value_dim", ctypes.c_int64),
        ("mask_batch", ctypes.c_int64),
        ("causal", ctypes.c_bool),
        ("scale", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("threshold", ctypes.c_uint32),
        ("keep_scale", ctypes.c_float),
        ("query_documents", ctypes.c_void_p),
        ("key_documents", ctypes.c_void_p),
        ("document_batch", ctypes.c_int64),
        ("whole_heads", ctypes.c_int64),
        ("first_head", ctypes.c_int64),
        ("whole_queries", ctypes.c_int64),
        ("whole_keys", ctypes.c_int64),
        ("query_places", ctypes.c_void_p),
        ("key_places", ctypes.c_void_p),
    )


def _sizes(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, call: AttentionCall) -> _Sizes:
    """What the kernels are told; ``call`` must outlive the result, which points into it."""
    seq, batch, heads, dim = q.shape
    keys, _, groups, value_dim = v.shape
    if mask is not None and mask.shape[1] != 1:
        raise ValueError(
            f"attention: mask {tuple(mask.shape)} differs between heads; it must be "
            f"[{batch} or 1, 1, {seq}, {keys}]"
        )
    mask_batch = 1 if mask is None else mask.shape[0]
    sizes = _Sizes(seq, keys, batch, heads, groups, dim, value_dim, mask_batch)
    sizes.causal, sizes.scale = call.causal, call.scale
    sizes.seed, sizes.offset, sizes.threshold, sizes.keep_scale = _draw(call.dropout)
    if call.documents is not None:
        sizes.query_documents = _pointer(call.documents.queries)
        sizes.key_documents = _pointer(call.documents.keys)
        sizes.document_batch = len(call.documents.queries)
    places = None if call.dropout is None else call.dropout.places
    sizes.whole_heads, sizes.whole_queries, sizes.whole_keys = heads, seq, keys
    if places is not None:
        sizes.whole_heads, sizes.first_head = places.heads, places.first_head
        sizes.whole_queries, sizes.whole_keys = places.num_queries, places.num_keys
        sizes.query_places = _pointer(places.queries)
        sizes.key_places = _pointer(places.keys)
    return sizes


def _pointer(array: NDArray | None) -> int | None:
    return None if array is None else array.ctypes.data


def _draw(dropout: ScoreDropout | None) -> Draw:
    if dropout is None:
        return NO_DROPOUT
    p = dropout.probability
    return dropout.seed, dropout.offset, threshold(p), 1.0 / (1.0 - p)


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


class _Attention(autograd.Function):
    """Keeps q, k, v, the output and one fp32 number per query and head for backward."""

    @staticmethod
    def forward(
        ctx: Context, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, call: AttentionCall
    ) -> Tensor:
        q, k, v = memory.contiguous(q), memory.contiguous(k), memory.contiguous(v)
        if mask is not None:
            mask = memory.contiguous(mask)
        seq, batch, heads, _ = q.shape
        out = memory.empty((seq, batch, heads * v.shape[3]), q.dtype)
        lse = memory.empty((seq, batch, heads))
        sizes = _sizes(q, k, v, mask, call)
        library().attention_forward(
            STORAGE[q.dtype], *_addresses(q, k, v, mask, out, lse), ctypes.addressof(sizes)
        )
        ctx.save_for_backward(q, k, v, mask, out, lse)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out, lse = ctx.saved_tensors
        dout = memory.contiguous(dout)
        grads = tuple(memory.empty(t.shape, t.dtype) for t in (q, k, v))
        sizes = _sizes(q, k, v, mask, ctx.call)
        library().attention_backward(
            STORAGE[q.dtype],
            *_addresses(q, k, v, mask, out, lse, dout, *grads),
            False,
            ctypes.addressof(sizes),
        )
        return *grads, None, None


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, call: AttentionCall) -> Tensor:
    """See ``ops.attention``."""
    return _Attention.apply(q, k, v, mask, call)


def attention_accumulate(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    call: AttentionCall,
) -> None:
    """See ``ops.attention_accumulate``."""
    sizes = _sizes(q, k, v, mask, call)
    library().attention_accumulate(
        STORAGE[q.dtype], *_addresses(q, k, v, mask, out, lse), ctypes.addressof(sizes)
    )


def attention_backward_accumulate(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    call: AttentionCall,
) -> None:
    """See ``ops.attention_backward_accumulate``."""
    sizes = _sizes(q, k, v, mask, call)
    library().attention_backward(
        STORAGE[q.dtype],
        *_addresses(q, k, v, mask, out, lse, dout, *grads),
        True,
        ctypes.addressof(sizes),
    )


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
