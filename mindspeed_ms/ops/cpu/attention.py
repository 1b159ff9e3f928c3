# SPDX-License-Identifier: Apache-2.0
"""Attention in blocks, and the masked softmax of the unfused path."""

from __future__ import annotations

import ctypes
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.attention_call import AttentionCall, Places, ScoreDropout
from mindspeed_ms.ops.cpu.dropout import NO_DROPOUT, Draw
from mindspeed_ms.ops.cpu.flat import copy_cast_
from mindspeed_ms.ops.cpu.library import STORAGE, native
from mindspeed_ms.ops.portable.dropout import threshold

Context = Any


_UNBOUNDED = 1 << 40


class _Band(ctypes.Structure):
    """Band of csrc/attention.h."""

    _fields_ = (
        ("offset", ctypes.c_int64),
        ("left", ctypes.c_int64),
        ("right", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("stops", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
    )


class _Finish(ctypes.Structure):
    """Finish of csrc/attention.h."""

    _fields_ = (
        ("softcap", ctypes.c_float),
        ("divisor", ctypes.c_float),
        ("storage", ctypes.c_int32),
        ("rounds_weights", ctypes.c_int32),
        ("slopes", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_storage", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("bias_batch", ctypes.c_int64),
        ("bias_heads", ctypes.c_int64),
    )


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
        ("band", _Band),
        ("finish", _Finish),
        ("row_step", ctypes.c_int64),
        ("batch_step", ctypes.c_int64),
        ("slots", ctypes.c_void_p),
        ("sinks", ctypes.c_void_p),
        ("tops", ctypes.c_void_p),
    )


def _sizes(q: Tensor, v: Tensor, mask: Tensor | None, call: AttentionCall) -> _Sizes:
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
    sizes.scale = call.scale
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
    sizes.band = _band(call, seq, keys)
    sizes.finish = _finish(call)
    sizes.row_step, sizes.batch_step = batch, 1
    return sizes


def _band(call: AttentionCall, queries: int, keys: int) -> _Band:
    band = call.band(queries, keys)
    left = _UNBOUNDED if band.left is None else band.left
    right = _UNBOUNDED if band.right is None else band.right
    if call.ranges is None:
        return _Band(band.offset, left, right)
    ranges = (call.ranges.starts, call.ranges.stops, call.ranges.offsets)
    return _Band(band.offset, left, right, *(_pointer(array) for array in ranges))


def _finish(call: AttentionCall) -> _Finish:
    finish = _Finish(softcap=call.softcap or 0.0, divisor=1.0, storage=-1)
    finish.slopes = _pointer(call.slopes)
    if call.storage is not None:
        finish.divisor, finish.storage = call.storage.divisor, STORAGE[call.storage.dtype]
        finish.rounds_weights = call.storage.weights
    if call.bias is not None:
        finish.bias, finish.bias_storage = call.bias.data_ptr(), STORAGE[call.bias.dtype]
        finish.bias_batch, finish.bias_heads = call.bias.shape[:2]
    return finish


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
    def forward(  # noqa: PLR0913 - the context and the arguments of ``attention``
        ctx: Context,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        sinks: Tensor | None,
        call: AttentionCall,
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        if mask is not None:
            mask = mask.contiguous()
        seq, batch, heads, _ = q.shape
        out = memory.empty((seq, batch, heads * v.shape[3]), q.dtype)
        lse = memory.empty((seq, batch, heads))
        sizes = _sizes(q, v, mask, call)
        logits = None if sinks is None else _in_fp32(sinks)
        tops = None if call.max_logits is None else memory.empty((seq, batch, heads))
        sizes.sinks, sizes.tops = _addresses(logits, tops)
        native.attention_forward(
            STORAGE[q.dtype], *_addresses(q, k, v, mask, out, lse), ctypes.addressof(sizes)
        )
        _note_largest(call, tops)
        ctx.save_for_backward(q, k, v, mask, out, lse, sinks)
        sizes.sinks = sizes.tops = None  # addresses of tensors that end with this call
        ctx.sizes, ctx.call = sizes, call  # the call owns what other addresses in sizes point to
        return out

    @staticmethod
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out, lse, sinks = ctx.saved_tensors
        dout = dout.contiguous()
        dq, dk = memory.empty(q.shape, q.dtype), memory.empty(k.shape, k.dtype)
        grads = (dq, dk, memory.empty(v.shape, v.dtype))
        native.attention_backward(
            STORAGE[q.dtype],
            *_addresses(q, k, v, mask, out, lse, dout, *grads),
            False,
            ctypes.addressof(ctx.sizes),
        )
        dsinks = None if sinks is None else attention_sinks_grad(out, dout, lse, sinks)
        return *grads, None, dsinks, None


def attention(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    call: AttentionCall,
) -> Tensor:
    """See ``ops.attention``."""
    return _Attention.apply(q, k, v, mask, sinks, call)


def _in_fp32(t: Tensor) -> Tensor:
    """Contiguous fp32 tensor of the same values."""
    t = t.contiguous()
    if t.dtype == ms.float32:
        return t
    result = memory.empty(t.shape)
    copy_cast_(result, t)
    return result


def _note_largest(call: AttentionCall, tops: Tensor | None) -> None:
    """Raise ``call.max_logits`` to the largest of the scores of each head."""
    if call.max_logits is not None and tops is not None and tops.size:
        largest = memory.as_numpy(call.max_logits)
        np.maximum(largest, memory.as_numpy(tops).max(axis=(0, 1)), out=largest)


def attention_sinks_grad(out: Tensor, dout: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """See ``ops.attention_sinks_grad``."""
    rows, heads = lse.size // lse.shape[-1], lse.shape[-1]
    out, dout, logits = out.contiguous(), dout.contiguous(), _in_fp32(sinks)
    grad = memory.empty(logits.shape)
    width = out.shape[-1] // heads
    native.attention_sinks_grad(
        STORAGE[out.dtype], *_addresses(out, dout, lse, logits, grad), rows, heads, width
    )
    if sinks.dtype == ms.float32:
        return grad
    result = memory.empty(sinks.shape, sinks.dtype)
    copy_cast_(result, grad)
    return result


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
    sizes = _sizes(q, v, mask, call)
    tops = None if call.max_logits is None else memory.empty(lse.shape)
    (sizes.tops,) = _addresses(tops)
    native.attention_accumulate(
        STORAGE[q.dtype], *_addresses(q, k, v, mask, out, lse), ctypes.addressof(sizes)
    )
    _note_largest(call, tops)


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
    sizes = _sizes(q, v, mask, call)
    native.attention_backward(
        STORAGE[q.dtype],
        *_addresses(q, k, v, mask, out, lse, dout, *grads),
        True,
        ctypes.addressof(sizes),
    )


_FEW_QUERIES = 4
"""Up to so many each key is read straight from memory; more are worth packing the keys for."""


def decode_attention(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    slots: Places | None,
    call: AttentionCall,
) -> Tensor:
    """See ``ops.decode_attention``."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    seq, batch, heads, _ = q.shape
    out = memory.empty((seq, batch, heads * v.shape[3]), q.dtype)
    sizes = _sizes(q, v, None, call)
    logits = None if sinks is None else _in_fp32(sinks)
    (sizes.sinks,) = _addresses(logits)
    if slots is not None:
        sizes.keys = k.shape[1]
        sizes.row_step, sizes.batch_step, sizes.slots = 1, k.shape[1], _pointer(slots)
    if seq <= _FEW_QUERIES:
        native.attention_decode(
            STORAGE[q.dtype], *_addresses(q, k, v, out), ctypes.addressof(sizes)
        )
    else:
        lse = memory.empty((seq, batch, heads))
        native.attention_forward(
            STORAGE[q.dtype], *_addresses(q, k, v, None, out, lse), ctypes.addressof(sizes)
        )
    return out


class _Softmax(autograd.Function):
    """Keeps the probabilities for backward."""

    @staticmethod
    def forward(
        ctx: Context, scores: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        scores = scores.contiguous()
        rows, columns = (1, *scores.shape)[-2:]
        matrices = scores.size // (rows * columns) if rows * columns else 0
        per_mask = 1
        if mask is not None:
            mask = mask.contiguous()
            masks = mask.size // (rows * columns) if rows * columns else 1
            per_mask = max(1, matrices // max(1, masks))
        probs = memory.empty(scores.shape, scores.dtype)
        native.softmax_forward(
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
        dprobs = dprobs.contiguous()
        dscores = memory.empty(probs.shape, probs.dtype)
        native.softmax_backward(
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
