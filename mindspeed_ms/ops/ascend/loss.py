# SPDX-License-Identifier: Apache-2.0
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


def ce_loss(
    row_max: Tensor,
    sum_exp: Tensor,
    predicted: Tensor,
    sum_logits: Tensor | None,
    smoothing: float,
    vocab_size: int,
) -> Tensor:
    """See ``ops.ce_loss``."""
    with autograd.no_grad():
        log_sum = mint.add(mint.log(sum_exp), row_max)
        loss = mint.sub(log_sum, predicted)
        if sum_logits is None:
            return loss
        uniform = mint.sub(log_sum, mint.div(sum_logits, vocab_size))
        return mint.add(mint.mul(loss, 1.0 - smoothing), mint.mul(uniform, smoothing))


def masked_mean(values: Tensor, weights: Tensor, scale: float) -> Tensor:
    """See ``ops.masked_mean``; stock operators, which record themselves."""
    weights = weights.astype(ms.float32)
    total = mint.clamp(mint.sum(weights), min=1.0)
    return mint.mul(mint.div(mint.sum(mint.mul(values, weights)), total), scale)


def ce_backward(
    logits: Tensor,
    target: Tensor,
    sums: tuple[Tensor, Tensor],
    dloss: Tensor,
    vocab_start: int,
    smoothing: float,
    vocab_size: int,
    spends_logits: bool,  # noqa: ARG001 - stock operators make a new tensor
) -> Tensor:
    """See ``ops.ce_backward``."""
    with autograd.no_grad():
        columns = (*target.shape, 1)
        local, here = _local(target.astype(ms.int64), vocab_start, logits.shape[-1])
        probs = mint.div(_shifted_exp(logits, sums[0]), sums[1].reshape(columns))
        wanted = mint.mul(here.astype(ms.float32), 1.0 - smoothing).reshape(columns)
        numbers = Tensor(np.arange(logits.shape[-1]))
        onehot = mint.mul(mint.eq(numbers, local.reshape(columns)).astype(ms.float32), wanted)
        grad = mint.sub(mint.sub(probs, smoothing / vocab_size), onehot)
        return mint.mul(grad, dloss.reshape(columns)).astype(logits.dtype)


def _softened(logits: Tensor, row_max: Tensor, temperature: float) -> Tensor:
    shift = row_max.reshape((*row_max.shape, 1))
    return mint.mul(mint.sub(logits.astype(ms.float32), shift), 1.0 / temperature)


def kl_parts(
    logits: Tensor, teacher: Tensor, row_max: Tensor, teacher_max: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ops.kl_parts``."""
    with autograd.no_grad():
        student = _softened(logits, row_max, temperature)
        taught = _softened(teacher, teacher_max, temperature)
        shares = mint.exp(taught)
        cross = mint.sum(mint.mul(shares, mint.sub(taught, student)), -1)
        return mint.sum(mint.exp(student), -1), mint.sum(shares, -1), cross


def kl_loss(own: Tensor, theirs: Tensor, both: Tensor, temperature: float) -> Tensor:
    """See ``ops.kl_loss``."""
    with autograd.no_grad():
        found = mint.add(mint.sub(mint.div(both, theirs), mint.log(theirs)), mint.log(own))
        return mint.mul(found, temperature**2)


def kl_backward(
    logits: Tensor,
    teacher: Tensor,
    tops: tuple[Tensor, Tensor],
    sums: tuple[Tensor, Tensor],
    dloss: Tensor,
    temperature: float,
) -> Tensor:
    """See ``ops.kl_backward``."""
    with autograd.no_grad():
        rows = (*dloss.shape, 1)
        own, theirs = (
            mint.div(mint.exp(_softened(one, top, temperature)), total.reshape(rows))
            for one, top, total in zip((logits, teacher), tops, sums, strict=True)
        )
        scale = mint.mul(dloss, temperature).reshape(rows)
        return mint.mul(mint.sub(own, theirs), scale).astype(logits.dtype)
