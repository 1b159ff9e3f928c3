# SPDX-License-Identifier: Apache-2.0
"""Pieces of the vocabulary-parallel cross entropy."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor

from mindspeed_ms.backend import memory
from mindspeed_ms.ops.cpu.library import STORAGE, native


def int64_of(t: Tensor) -> Tensor:
    """The indices as contiguous int64, which is what the library reads."""
    return memory.in_dtype(t.contiguous(), ms.int64)


def _float32_of(t: Tensor) -> Tensor:
    return memory.in_dtype(t.contiguous(), ms.float32)


def _rows(logits: Tensor) -> int:
    return logits.size // max(logits.shape[-1], 1)


def ce_max(logits: Tensor) -> Tensor:
    """See ``ops.ce_max``."""
    logits = logits.contiguous()
    result = memory.empty(logits.shape[:-1])
    native.ce_max(
        STORAGE[logits.dtype],
        logits.data_ptr(),
        result.data_ptr(),
        _rows(logits),
        logits.shape[-1],
    )
    return result


def ce_sum(
    logits: Tensor, target: Tensor, row_max: Tensor, vocab_start: int
) -> tuple[Tensor, Tensor]:
    """See ``ops.ce_sum``."""
    logits, target, row_max = logits.contiguous(), int64_of(target), _float32_of(row_max)
    sum_exp, predicted = memory.empty(target.shape), memory.empty(target.shape)
    native.ce_sum(
        STORAGE[logits.dtype],
        logits.data_ptr(),
        target.data_ptr(),
        row_max.data_ptr(),
        sum_exp.data_ptr(),
        predicted.data_ptr(),
        _rows(logits),
        logits.shape[-1],
        vocab_start,
    )
    return sum_exp, predicted


def ce_sum_logits(logits: Tensor) -> Tensor:
    """See ``ops.ce_sum_logits``."""
    logits = logits.contiguous()
    result = memory.empty(logits.shape[:-1])
    native.ce_sum_logits(
        STORAGE[logits.dtype],
        logits.data_ptr(),
        result.data_ptr(),
        _rows(logits),
        logits.shape[-1],
    )
    return result


def ce_backward(
    logits: Tensor,
    target: Tensor,
    sums: tuple[Tensor, Tensor],
    dloss: Tensor,
    vocab_start: int,
    smoothing: float,
    vocab_size: int,
    spends_logits: bool,
) -> Tensor:
    """See ``ops.ce_backward``."""
    logits, target = logits.contiguous(), int64_of(target)
    row_max, sum_exp, dloss = _float32_of(sums[0]), _float32_of(sums[1]), _float32_of(dloss)
    grad = logits if spends_logits else memory.empty(logits.shape, logits.dtype)
    native.ce_backward(
        STORAGE[logits.dtype],
        logits.data_ptr(),
        target.data_ptr(),
        row_max.data_ptr(),
        sum_exp.data_ptr(),
        dloss.data_ptr(),
        grad.data_ptr(),
        _rows(logits),
        logits.shape[-1],
        vocab_start,
        smoothing,
        smoothing / vocab_size,
    )
    return grad
