"""Attention through FlashAttentionScore, and the masked softmax of the unfused path."""

from __future__ import annotations

import functools

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops

from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.ascend.dropout import kept
from mindspeed_ms.ops.portable.dropout import draw

_FUSED_TYPES = (ms.bfloat16, ms.float16)
_FUSED_DIM = 16
_COMPRESSED = 2048
_ALL_MASK, _RIGHT_DOWN_CAUSAL = 1, 3


@functools.lru_cache(maxsize=1)
def _compressed_mask() -> Tensor:
    """The triangle that the causal mode of the kernel expects, whatever the sequence length."""
    return Tensor(np.triu(np.ones((_COMPRESSED, _COMPRESSED), np.uint8), 1))


def _hidden(rows: int, columns: int, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Bool, True = hidden; broadcasts to [B, N, rows, columns]."""
    if not causal:
        return mask
    later = Tensor(np.triu(np.ones((rows, columns), np.bool_), 1 + columns - rows))
    return later if mask is None else mint.logical_or(mask, later)


def softmax(scores: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """See ``ops.softmax``; computed in fp32."""
    wide = mint.mul(scores.astype(ms.float32), scale)
    rows, columns = (1, *scores.shape)[-2:]
    hidden = _hidden(rows, columns, mask, causal)
    if hidden is not None:
        wide = wide.masked_fill(hidden, -3.0e38)
    probs = mint.nn.functional.softmax(wide, -1)
    if hidden is not None:
        probs = mint.mul(probs, mint.logical_not(hidden).astype(ms.float32))
    return probs.astype(scores.dtype)


def _packed_bits(keep: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """uint8 [B, N, S, S' / 8] from one bool per score, the first score in the lowest bit."""
    weights = Tensor(np.array([1 << bit for bit in range(8)], np.int32))
    bits = keep.reshape((*shape[:3], shape[3] // 8, 8)).astype(ms.int32)
    return mint.sum(mint.mul(bits, weights), -1).astype(ms.uint8)


def _composed(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, keep: Tensor
) -> Tensor:
    """Attention from batched products, for types and head sizes the fused kernel does not take."""
    s, b, n, d = q.shape
    columns, _, groups, _ = k.shape
    heads = mint.permute(q, (1, 2, 0, 3)).reshape((b * groups, n // groups * s, d))
    keys, values = (mint.permute(t, (1, 2, 0, 3)).reshape((b * groups, columns, d)) for t in (k, v))
    scores = mint.bmm(heads, mint.transpose(keys, 1, 2)).reshape((b, n, s, columns))
    probs = softmax(scores, mask, causal, scale)
    if keep is not None:
        probs = mint.mul(probs, keep)
    out = mint.bmm(probs.reshape((b * groups, n // groups * s, columns)), values)
    return mint.permute(out.reshape((b, n, s, d)), (2, 0, 1, 3)).reshape((s, b, n * d))


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
    """See ``ops.attention``; fused for bf16 and fp16 with a head size that is a multiple of 16.

    fp32 and other head sizes are composed of batched products, with all scores in memory. What the
    fused kernel gives for a query without visible keys is not verified.

    Raises:
        ValueError: dropout with a number of keys that is not a multiple of 8 (the kernel reads the
            mask as bits).
    """
    s, b, n, d = q.shape
    shape = (b, n, s, k.shape[0])
    count = b * n * s * k.shape[0]
    keep = None
    if dropout_p > 0.0 and generator is not None:
        keep = kept(dropout_p, *draw(generator, count), count)
    if q.dtype not in _FUSED_TYPES or d % _FUSED_DIM:
        factor = None
        if keep is not None:
            factor = mint.mul(keep.reshape(shape).astype(q.dtype), 1.0 / (1.0 - dropout_p))
        return _composed(q, k, v, mask, causal, scale, factor)
    if keep is not None and shape[3] % 8:
        raise ValueError(
            f"attention: dropout with {shape[3]} keys; the kernel needs a multiple of 8: pad the "
            "sequence"
        )
    compressed = causal and mask is None
    hidden = _compressed_mask() if compressed else _hidden(s, shape[3], mask, causal)
    if hidden is not None and not compressed:
        hidden = mint.broadcast_to(hidden, (b, 1, s, shape[3]))
    mode = _RIGHT_DOWN_CAUSAL if compressed else (0 if hidden is None else _ALL_MASK)
    return ops.flash_attention_score(
        q.reshape((s, b, n * d)),
        k.reshape((k.shape[0], b, -1)),
        v.reshape((v.shape[0], b, -1)),
        n,
        drop_mask=None if keep is None else _packed_bits(keep, shape),
        attn_mask=hidden,
        keep_prob=1.0 - dropout_p,
        scalar_value=scale,
        input_layout="SBH",
        sparse_mode=mode,
    )
