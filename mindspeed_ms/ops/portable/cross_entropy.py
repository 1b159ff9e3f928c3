# SPDX-License-Identifier: Apache-2.0
"""Pieces of the vocabulary-parallel cross entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.portable.arrays import Array, tensor_of, wide


def _local_target(target: Tensor, vocab_start: int, size: int) -> tuple[Array, Array]:
    """(target index in this partition, True where it lies here); foreign indices become 0."""
    local = memory.as_numpy(memory.contiguous(target)).astype(np.int64) - vocab_start
    here = (local >= 0) & (local < size)
    return np.where(here, local, 0), here


def ce_max(logits: Tensor) -> Tensor:
    """See ``ops.ce_max``."""
    return tensor_of(wide(logits).max(axis=-1))


def ce_sum(
    logits: Tensor, target: Tensor, row_max: Tensor, vocab_start: int
) -> tuple[Tensor, Tensor]:
    """See ``ops.ce_sum``."""
    values = wide(logits)
    local, here = _local_target(target, vocab_start, values.shape[-1])
    predicted = np.take_along_axis(values, local[..., None], axis=-1)[..., 0]
    exponentials = np.exp(values - wide(row_max)[..., None])
    total = exponentials.sum(axis=-1, dtype=np.float64).astype(np.float32)
    return tensor_of(total), tensor_of(np.where(here, predicted, np.float32(0)))


def ce_sum_logits(logits: Tensor) -> Tensor:
    """See ``ops.ce_sum_logits``."""
    return tensor_of(wide(logits).sum(axis=-1, dtype=np.float64).astype(np.float32))


def ce_loss(
    row_max: Tensor,
    sum_exp: Tensor,
    predicted: Tensor,
    sum_logits: Tensor | None,
    smoothing: float,
    vocab_size: int,
) -> Tensor:
    """See ``ops.ce_loss``."""
    log_sum = np.log(wide(sum_exp)) + wide(row_max)
    loss = log_sum - wide(predicted)
    if sum_logits is not None:
        uniform = log_sum - wide(sum_logits) / np.float32(vocab_size)
        loss = np.float32(1.0 - smoothing) * loss + np.float32(smoothing) * uniform
    return tensor_of(loss)


class _MaskedMean(autograd.Function):
    """mean = scale sum(x w) / max(sum(w), 1); its gradient in x is scale w / max(sum(w), 1)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, scale: float) -> Tensor:
        factors = memory.as_numpy(memory.contiguous(weights)).astype(np.float64)
        factors *= scale / max(factors.sum(), 1.0)
        ctx.factors = factors
        return tensor_of(np.array((wide(values) * factors).sum(), dtype=np.float32))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return tensor_of(ctx.factors * wide(grad)), None, None


def masked_mean(values: Tensor, weights: Tensor, scale: float) -> Tensor:
    """See ``ops.masked_mean``."""
    return _MaskedMean.apply(values, weights, scale)


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
    values = wide(logits)
    local, here = _local_target(target, vocab_start, values.shape[-1])
    grad = np.exp(values - wide(sums[0])[..., None]) / wide(sums[1])[..., None]
    grad -= np.float32(smoothing / vocab_size)
    picked = np.take_along_axis(grad, local[..., None], axis=-1)
    wanted = here[..., None] * np.float32(1.0 - smoothing)
    np.put_along_axis(grad, local[..., None], picked - wanted, axis=-1)
    grad *= wide(dloss)[..., None]
    return tensor_of(grad, logits.dtype)


def _softened(logits: Tensor, row_max: Tensor, temperature: float) -> Array:
    """Logits over the temperature, moved so that the largest of a row is 0."""
    moved = wide(logits) - wide(row_max)[..., None]
    return moved * np.float32(1.0 / temperature)


def kl_parts(
    logits: Tensor, teacher: Tensor, row_max: Tensor, teacher_max: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``ops.kl_parts``."""
    student = _softened(logits, row_max, temperature)
    taught = _softened(teacher, teacher_max, temperature)
    shares = np.exp(taught)
    cross = (shares * (taught - student)).sum(axis=-1, dtype=np.float64)
    sums = (np.exp(student).sum(axis=-1, dtype=np.float64), shares.sum(-1, dtype=np.float64), cross)
    own, theirs, both = (tensor_of(one.astype(np.float32)) for one in sums)
    return own, theirs, both


def kl_loss(own: Tensor, theirs: Tensor, both: Tensor, temperature: float) -> Tensor:
    """See ``ops.kl_loss``."""
    student, teacher, cross = (wide(one).astype(np.float64) for one in (own, theirs, both))
    found = cross / teacher - np.log(teacher) + np.log(student)
    return tensor_of((found * temperature**2).astype(np.float32))


def kl_backward(
    logits: Tensor,
    teacher: Tensor,
    tops: tuple[Tensor, Tensor],
    sums: tuple[Tensor, Tensor],
    dloss: Tensor,
    temperature: float,
) -> Tensor:
    """See ``ops.kl_backward``."""
    own, theirs = (
        np.exp(_softened(one, top, temperature)) / wide(total)[..., None]
        for one, top, total in zip((logits, teacher), tops, sums, strict=True)
    )
    own -= theirs
    own *= (wide(dloss) * np.float32(temperature))[..., None]
    return tensor_of(own, logits.dtype)
