# SPDX-License-Identifier: Apache-2.0
"""Dropout with the same Philox words as every other set, computed on the device.

The 32-bit arithmetic of Philox runs in int64: a product of two 32-bit numbers wraps, and both its
halves come out right after masking. See ``ops/portable/dropout.py`` for the definition.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, mint, ops
from numpy.typing import NDArray

from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.dropout_words import draw
from mindspeed_ms.ops.portable.dropout import threshold

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _low(x: Tensor) -> Tensor:
    return ops.bitwise_and(x, Tensor(np.int64(_LOW)))


def _high(x: Tensor) -> Tensor:
    return _low(ops.bitwise_right_shift(x, Tensor(np.int64(32))))


def _mixed(high: Tensor, word: Tensor, key: int) -> Tensor:
    return ops.bitwise_xor(ops.bitwise_xor(high, word), Tensor(np.int64(key)))


def _philox_blocks(seed: int, blocks: Tensor) -> Tensor:
    """The four words of each block [n] of the stream, int64 in [0, 2^32), [n, 4]."""
    x0, x1 = _low(blocks), _high(blocks)
    x2 = x3 = mint.mul(blocks, 0)
    key0, key1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        product0, product1 = mint.mul(x0, _MULTIPLIERS[0]), mint.mul(x2, _MULTIPLIERS[1])
        x0, x2 = _mixed(_high(product1), x1, key0), _mixed(_high(product0), x3, key1)
        x1, x3 = _low(product1), _low(product0)
        key0, key1 = (key0 + _WEYL[0]) & _LOW, (key1 + _WEYL[1]) & _LOW
    return mint.cat([x.reshape((-1, 1)) for x in (x0, x1, x2, x3)], -1)


def philox_words(seed: int, offset: int, count: int) -> Tensor:
    """Words ``offset .. offset + count - 1`` of the stream, int64 in [0, 2^32)."""
    first, last = offset // 4, (offset + count + 3) // 4
    words = _philox_blocks(seed, Tensor(np.arange(first, last, dtype=np.int64))).reshape((-1,))
    return mint.narrow(words, 0, offset - 4 * first, count)


def kept(p: float, seed: int, offset: int, count: int) -> Tensor:
    """Bool per element: True where it survives."""
    return mint.ge(philox_words(seed, offset, count), threshold(p))


def kept_words(p: float, seed: int, words: NDArray[np.int64]) -> Tensor:
    """``kept`` of elements whose words have the given numbers [n]."""
    drawn = _philox_blocks(seed, Tensor(words // 4))
    lanes = Tensor((words % 4).reshape(-1, 1))
    return mint.ge(mint.gather(drawn, 1, lanes).reshape((-1,)), threshold(p))


def dropout(x: Tensor, p: float, generator: Generator) -> Tensor:
    """See ``ops.dropout``."""
    keep = kept(p, *draw(generator, x.size), x.size).reshape(x.shape).astype(x.dtype)
    return mint.mul(x, mint.mul(keep, 1.0 / (1.0 - p)))


def bias_dropout_add(
    x: Tensor, bias: Tensor | None, residual: Tensor, p: float, generator: Generator | None
) -> Tensor:
    """See ``ops.bias_dropout_add``; rounded to the storage type after each of the steps."""
    y = x if bias is None else mint.add(x, bias)
    if p > 0.0 and generator is not None:
        y = dropout(y, p, generator)
    return mint.add(residual, y)
