# SPDX-License-Identifier: Apache-2.0
"""Argument checks of the public functions, shared by every kernel set.

The native kernels trust the sizes they are given, so a wrong shape must end here. A check that sees
shapes and types only is done once per combination of them: it is cached, a failure never is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec

import mindspore as ms
import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from mindspeed_ms.ops.attention_call import AttentionCall

Shape = tuple[int, ...]
P = ParamSpec("P")

_FLOATS = (ms.float32, ms.bfloat16, ms.float16)
_INTS = (ms.int32, ms.int64)


def _once(check: Callable[P, None]) -> Callable[P, None]:
    """``check``, skipped for arguments that have passed it."""
    # The cache is bounded: sequences of many lengths must not fill the memory of a long run.
    return lru_cache(maxsize=4096)(check)  # type: ignore[return-value]


# ---- of shapes and types -------------------------------------------------------------------------


@_once
def floating(name: str, dtype: ms.Type, *others: ms.Type) -> None:
    """All types are the same floating type.

    Raises:
        ValueError: a type the kernels do not store, or two different ones.
    """
    if dtype not in _FLOATS:
        raise ValueError(f"{name}: type {dtype}; use float32, bfloat16 or float16")
    for other in others:
        if other != dtype:
            raise ValueError(
                f"{name}: types {dtype} and {other} differ; cast the arguments to one type"
            )


@_once
def vector(name: str, what: str, shape: Shape, size: int) -> None:
    """A tensor is one-dimensional with ``size`` elements."""
    if shape != (size,):
        raise ValueError(
            f"{name}: {what} has shape {shape}; it must be ({size},), the last dimension of the "
            "input"
        )


@_once
def bias(name: str, size: int, dtype: ms.Type, bias_shape: Shape, bias_dtype: ms.Type) -> None:
    """A bias of the type of the input, for its ``size`` columns."""
    floating(name, dtype, bias_dtype)
    vector(name, "bias", bias_shape, size)


@_once
def same_shape(name: str, first: Shape, second: Shape) -> None:
    """Both shapes are equal."""
    if first != second:
        raise ValueError(f"{name}: shapes {first} and {second} differ; they must be equal")


@_once
def leading_shape(name: str, wide: Shape, rows: Shape) -> None:
    """``rows`` is the shape ``wide`` without its last dimension."""
    if wide[:-1] != rows:
        raise ValueError(f"{name}: one value per row is needed, shape {wide[:-1]}; got {rows}")


@_once
def integers(name: str, dtype: ms.Type) -> None:
    """The type is int32 or int64."""
    if dtype not in _INTS:
        raise ValueError(f"{name}: indices of type {dtype}; use int32 or int64")


@_once
def float32_matrix(name: str, shape: Shape, dtype: ms.Type) -> None:
    """A matrix of fp32."""
    if dtype != ms.float32 or len(shape) != 2:
        raise ValueError(f"{name}: got {shape} {dtype}; it must be Float32 [rows, columns]")


@_once
def dropout(name: str, p: float, has_generator: bool) -> None:
    """``p`` is a probability below one, and words can be drawn for it."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name}: drop probability {p}; it must be in [0, 1)")
    if p > 0.0 and not has_generator:
        raise ValueError(f"{name}: drop probability {p} without a generator; pass one or use p=0")


@_once
def linear(
    name: str, x: Shape, x_dtype: ms.Type, weight: Shape, weight_dtype: ms.Type, dim: int
) -> None:
    """The last dimension of the input is dimension ``dim`` of the 2-D weight."""
    floating(name, x_dtype, weight_dtype)
    if len(weight) != 2 or len(x) < 1 or x[-1] != weight[dim]:
        raise ValueError(
            f"{name}: input {x} does not fit weight {weight}; the input's last dimension must "
            f"equal dimension {dim} of a 2-D weight [out, in]"
        )


@_once
def weight_grad(name: str, dy: Shape, dy_dtype: ms.Type, x: Shape, x_dtype: ms.Type) -> None:
    """Input and gradient of the output have the same rows."""
    floating(name, dy_dtype, x_dtype)
    if dy[:-1] != x[:-1]:
        raise ValueError(
            f"{name}: rows of dy {dy[:-1]} and x {x[:-1]} differ; both must come from one forward"
        )


@_once
def rotary(
    t: Shape,
    t_dtype: ms.Type,
    cos: Shape,
    cos_dtype: ms.Type,
    sin: Shape,
    sin_dtype: ms.Type,
) -> None:
    """Shapes of t [S, B, N, D] and of the fp32 tables [S, B or 1, 1, rot], rot even, <= D."""
    floating("rotary", t_dtype)
    same_shape("rotary", cos, sin)
    fits = (
        len(t) == 4
        and len(cos) == 4
        and cos[0] == t[0]
        and cos[1] in (1, t[1])
        and cos[2] == 1
        and cos[3] % 2 == 0
        and cos[3] <= t[3]
    )
    if not fits or cos_dtype != ms.float32 or sin_dtype != ms.float32:
        raise ValueError(
            f"rotary: tables {cos} {cos_dtype} for an input {t}; they must be "
            "Float32 [S, B or 1, 1, rot] with rot even and at most the head size"
        )


@_once
def split_qkv(mixed: Shape, num_groups: int, queries_per_group: int, head_dim: int) -> None:
    """Check the arguments of ``ops.split_qkv``."""
    columns = num_groups * (queries_per_group + 2) * head_dim
    if len(mixed) != 3 or mixed[-1] != columns:
        raise ValueError(
            f"split_qkv: mixed has shape {mixed}; {num_groups} groups of "
            f"{queries_per_group} queries, a key and a value of {head_dim} need [S, B, {columns}]"
        )


@_once
def buffer(name: str, size: int, shape: Shape, dtype: ms.Type, is_contiguous: bool) -> None:
    """``size`` elements of fp32 in one piece, so that they can be written through their address."""
    if dtype != ms.float32 or math.prod(shape) != size:
        raise ValueError(
            f"{name}: got {shape} {dtype}; all buffers must be Float32 with {size} elements"
        )
    if not is_contiguous:
        raise ValueError(
            f"{name}: a tensor of shape {shape} is written in place but is not contiguous; pass a "
            "contiguous view of the buffer"
        )


# ---- of tensors: what is not a matter of shape and type is looked at every time -----------------


def accumulator(name: str, main_grad: Tensor, shape: tuple[int, int]) -> None:
    """``main_grad`` can be added to in place."""
    if tuple(main_grad.shape) != shape or main_grad.dtype != ms.float32:
        raise ValueError(
            f"{name}: main_grad is {tuple(main_grad.shape)} {main_grad.dtype}; it must be {shape} "
            "Float32"
        )
    in_place(name, main_grad)


def in_place(name: str, *tensors: Tensor) -> None:
    """Every tensor is contiguous, so that it can be written through its address."""
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name}: a tensor of shape {tuple(tensor.shape)} is written in place but is not "
                "contiguous; pass a contiguous view of the buffer"
            )


def flat_float32(name: str, *tensors: Tensor) -> None:
    """Contiguous fp32 tensors with the same number of elements."""
    size = math.prod(tensors[0].shape)
    for tensor in tensors:
        if tensor.dtype != ms.float32 or math.prod(tensor.shape) != size:
            raise ValueError(
                f"{name}: got {tuple(tensor.shape)} {tensor.dtype}; all buffers must be Float32 "
                f"with {size} elements"
            )
    in_place(name, *tensors)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    call: AttentionCall,
    sinks: Tensor | None = None,
) -> None:
    """Shapes of q [S, B, N, D], k [S', B, G, D], v [S', B, G, E], and of what ``call`` holds."""
    floating("attention", q.dtype, k.dtype, v.dtype)
    if len(q.shape) != 4 or len(k.shape) != 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; q must be "
            "[S, B, N, D], k [S', B, G, D] and v [S', B, G, E]"
        )
    if q.shape[1] != k.shape[1] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"attention: q {tuple(q.shape)} and k {tuple(k.shape)}: batch and head size must be "
            "equal, and the query heads a multiple of the key heads"
        )
    scores = (q.shape[1], q.shape[2], q.shape[0], k.shape[0])
    if mask is not None:
        boolean_mask("attention", mask, scores)
    attention_places(call, scores)
    attention_scores(call, scores)
    if sinks is not None:
        floating("attention", sinks.dtype)
        vector("attention", "sinks", sinks.shape, q.shape[2])


def decode_attention(  # noqa: PLR0913 - one argument per tensor
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slots: NDArray[np.int64] | None,
    call: AttentionCall,
    sinks: Tensor | None,
) -> None:
    """As ``attention`` without a mask, with keys [S', B, G, D] or [slots, S', G, D]."""
    floating("decode_attention", q.dtype, k.dtype, v.dtype)
    if len(q.shape) != 4 or len(k.shape) != 4 or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"decode_attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; q must "
            "be [S, B, N, D], k and v [S', B, G, D], or [slots, S', G, D] with slots"
        )
    in_place("decode_attention", k, v)
    queries, batch, heads, dim = q.shape
    keys = k.shape[0] if slots is None else k.shape[1]
    rows = k.shape[1] if slots is None else len(slots)
    if rows != batch or k.shape[3] != dim or heads % k.shape[2]:
        raise ValueError(
            f"decode_attention: q {tuple(q.shape)}, k {tuple(k.shape)} and {rows} rows of keys: "
            "rows and head size must be equal, and the query heads a multiple of the key heads"
        )
    if slots is not None and not all(0 <= slot < k.shape[0] for slot in slots):
        raise ValueError(
            f"decode_attention: slots {slots.tolist()}; there are {k.shape[0]}, counted from 0"
        )
    attention_places(call, (batch, heads, queries, keys))
    attention_scores(call, (batch, heads, queries, keys))
    if sinks is not None:
        floating("decode_attention", sinks.dtype)
        vector("decode_attention", "sinks", sinks.shape, heads)


def attention_places(call: AttentionCall, scores: tuple[int, int, int, int]) -> None:
    """Window, key ranges and documents of a call fit scores [B, N, S, S']."""
    batch, _, queries, keys = scores
    left, right = call.window
    if (left is not None and left < 0) or (right is not None and right < 0):
        raise ValueError(
            f"attention: window {call.window}; its sides are numbers of tokens from 0, or None for "
            "no limit"
        )
    if call.ranges is not None:
        starts, stops = call.ranges.starts, call.ranges.stops
        fits = len(starts) == batch and (starts >= 0).all() and (stops <= keys).all()
        if not fits:
            raise ValueError(
                f"attention: key ranges from {starts.tolist()} to {stops.tolist()} for {batch} "
                f"rows of {keys} keys; there must be one range per row, within its keys"
            )
    if call.documents is not None:
        found = call.documents.queries.shape, call.documents.keys.shape
        if found not in [((b, queries), (b, keys)) for b in (1, batch)]:
            raise ValueError(
                f"attention: document numbers {found[0]} and {found[1]} for {batch} rows of "
                f"{queries} queries and {keys} keys; they must be [B or 1, S] and [B or 1, S']"
            )


def attention_scores(call: AttentionCall, scores: tuple[int, int, int, int]) -> None:
    """What a call does to scores [B, N, S, S'] fits them."""
    batch, heads, queries, keys = scores
    if call.softcap is not None and not call.softcap > 0.0:
        raise ValueError(f"attention: softcap {call.softcap}; it must be above 0, or None")
    slopes = call.slopes
    if slopes is not None and not (
        slopes.shape == (heads,) and slopes.dtype == np.float32 and slopes.flags.c_contiguous
    ):
        raise ValueError(
            f"attention: slopes {slopes.shape} {slopes.dtype}; there must be {heads}, one per "
            "head, float32 and contiguous"
        )
    if call.bias is not None:
        floating("attention", call.bias.dtype)
        in_place("attention", call.bias)
        if tuple(call.bias.shape) not in [
            (b, n, queries, keys) for b in (1, batch) for n in (1, heads)
        ]:
            raise ValueError(
                f"attention: bias {tuple(call.bias.shape)}; it must be [{batch} or 1, "
                f"{heads} or 1, {queries}, {keys}]"
            )
    if call.storage is not None and call.storage.dtype not in (ms.bfloat16, ms.float16):
        raise ValueError(
            f"attention: scores stored in {call.storage.dtype}; use bfloat16 or float16, or None"
        )
    if call.max_logits is not None:
        vector("attention", "max_logits", call.max_logits.shape, heads)
        flat_float32("attention", call.max_logits)


def attention_sums(q: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
    """``out`` [S, B, N * E] and fp32 ``lse`` [S, B, N] of one attention."""
    s, b, n, _ = q.shape
    if tuple(out.shape) != (s, b, n * v.shape[3]) or tuple(lse.shape) != (s, b, n):
        raise ValueError(
            f"attention: out {tuple(out.shape)} and lse {tuple(lse.shape)} for q {tuple(q.shape)} "
            f"and v {tuple(v.shape)}; they must be {(s, b, n * v.shape[3])} and {(s, b, n)}"
        )
    if lse.dtype != ms.float32:
        raise ValueError(f"attention: lse is {lse.dtype}; it must be Float32")


def boolean_mask(name: str, mask: Tensor, scores_shape: tuple[int, ...]) -> None:
    """``mask`` is bool [B or 1, 1, Sq, Sk] for scores [B, N, Sq, Sk], or has their shape."""
    shape = tuple(mask.shape)
    batch, *_, rows, columns = (1, 1, *scores_shape)[-4:]
    if mask.dtype != ms.bool_ or shape not in (
        (batch, 1, rows, columns),
        (1, 1, rows, columns),
        tuple(scores_shape),
    ):
        raise ValueError(
            f"{name}: mask {shape} {mask.dtype}; it must be Bool [{batch} or 1, 1, {rows}, "
            f"{columns}], True where a key is hidden"
        )
