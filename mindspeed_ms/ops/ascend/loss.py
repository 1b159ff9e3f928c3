"""Pieces of the vocabulary-parallel cross entropy from stock operators."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

from mindspeed_ms.backend import autograd
from mindspeed_ms.ops.ascend.linear import _local


def ce_max(logits: Tensor) -> Tensor:
    """See ``ops.ce_max``."""
    with autograd.no_grad():
        return mint.amax(logits.astype(ms.float32), -1)


def _shifted_exp(logits: Tensor, row_max: Tensor) -> Tensor:
    shift = row_max.reshape((*row_max.shape, 1))
    return mint.exp(mint.sub(logits.astype(ms.float32), shift))


def ce_sum(
    logits: Tensor, target: Tensor, row_max: Tensor, vocab_start: int
) -> tuple[Tensor, Tensor]:
    """See ``ops.ce_sum``."""
    with autograd.no_grad():
        local, here = _local(target.astype(ms.int64), vocab_start, logits.shape[-1])
        picked = mint.gather(logits, -1, local.reshape((*local.shape, 1))).reshape(local.shape)
        predicted = mint.mul(picked.astype(ms.float32), here.astype(ms.float32))
        return mint.sum(_shifted_exp(logits, row_max), -1), predicted


def ce_sum_logits(logits: Tensor) -> Tensor:
    """See ``ops.ce_sum_logits``."""
    with autograd.no_grad():
        return mint.sum(logits.astype(ms.float32), -1)


def ce_backward(
    logits: Tensor,
    target: Tensor,
    row_max: Tensor,
    sum_exp: Tensor,
    dloss: Tensor,
    vocab_start: int,
    smoothing: float,
    vocab_size: int,
) -> Tensor:
    """See ``ops.ce_backward``."""
    with autograd.no_grad():
        columns = (*target.shape, 1)
        local, here = _local(target.astype(ms.int64), vocab_start, logits.shape[-1])
        probs = mint.div(_shifted_exp(logits, row_max), sum_exp.reshape(columns))
        wanted = mint.mul(here.astype(ms.float32), 1.0 - smoothing).reshape(columns)
        numbers = Tensor(np.arange(logits.shape[-1]))
        onehot = mint.mul(mint.eq(numbers, local.reshape(columns)).astype(ms.float32), wanted)
        grad = mint.sub(mint.sub(probs, smoothing / vocab_size), onehot)
        return mint.mul(grad, dloss.reshape(columns)).astype(logits.dtype)
