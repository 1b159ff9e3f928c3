# SPDX-License-Identifier: Apache-2.0
"""Products of a linear layer, and the embedding table."""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Tensor, mint

from mindspeed_ms.backend import autograd


def _rows(t: Tensor) -> Tensor:
    return t.reshape((math.prod(t.shape[:-1]), t.shape[-1]))


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ``ops.linear_forward``."""
    with autograd.no_grad():
        return mint.nn.functional.linear(x, weight, bias)


def linear_dgrad(dy: Tensor, weight: Tensor) -> Tensor:
    """See ``ops.linear_dgrad``."""
    with autograd.no_grad():
        return mint.matmul(dy, weight)


def linear_wgrad(dy: Tensor, x: Tensor) -> Tensor:
    """See ``ops.linear_wgrad``."""
    with autograd.no_grad():
        return mint.matmul(mint.transpose(_rows(dy), 0, 1), _rows(x))


def linear_wgrad_accumulate(dy: Tensor, x: Tensor, main_grad: Tensor) -> None:
    """See ``ops.linear_wgrad_accumulate``; a bf16 product is rounded before it is added."""
    with autograd.no_grad():
        main_grad.add_(linear_wgrad(dy, x).astype(ms.float32))


def bias_grad(dy: Tensor) -> Tensor:
    """See ``ops.bias_grad``."""
    with autograd.no_grad():
        return mint.sum(_rows(dy), 0)


def _local(ids: Tensor, vocab_start: int, size: int) -> tuple[Tensor, Tensor]:
    """(row of each id, 1 where the id belongs here else 0); foreign ids point to row 0."""
    rows = mint.sub(ids, vocab_start)
    here = mint.logical_and(mint.ge(rows, 0), mint.lt(rows, size))
    return mint.mul(rows, here.astype(ids.dtype)), here


def embedding(weight: Tensor, ids: Tensor, vocab_start: int) -> Tensor:
    """See ``ops.embedding``."""
    rows, here = _local(ids, vocab_start, weight.shape[0])
    y = mint.nn.functional.embedding(rows, weight)
    return mint.mul(y, here.astype(weight.dtype).reshape((*ids.shape, 1)))


def embedding_wgrad_accumulate(
    dy: Tensor, ids: Tensor, main_grad: Tensor, vocab_start: int
) -> None:
    """See ``ops.embedding_wgrad_accumulate``."""
    with autograd.no_grad():
        rows, here = _local(ids, vocab_start, main_grad.shape[0])
        values = mint.mul(_rows(dy).astype(ms.float32), here.astype(ms.float32).reshape((-1, 1)))
        main_grad.copy_(mint.index_add(main_grad, 0, rows.reshape((-1,)).astype(ms.int32), values))
