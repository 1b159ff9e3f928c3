# SPDX-License-Identifier: Apache-2.0
"""Table lookup and its gradient."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops.cpu.cross_entropy import int64_of
from mindspeed_ms.ops.cpu.flat import copy_cast_
from mindspeed_ms.ops.cpu.library import STORAGE, native

Context = Any


class _Embedding(autograd.Function):
    """``y = weight[ids]``; the gradient of the table is dense and summed in fp32."""

    @staticmethod
    def forward(ctx: Context, weight: Tensor, ids: Tensor, vocab_start: int) -> Tensor:
        weight, ids = memory.contiguous(weight), int64_of(ids)
        vocab, columns = weight.shape
        y = memory.empty((*ids.shape, columns), weight.dtype)
        native.embedding_forward(
            STORAGE[weight.dtype],
            weight.data_ptr(),
            ids.data_ptr(),
            y.data_ptr(),
            ids.size,
            vocab,
            columns,
            vocab_start,
        )
        ctx.save_for_backward(ids)
        ctx.shape, ctx.dtype, ctx.vocab_start = (vocab, columns), weight.dtype, vocab_start
        return y

    @staticmethod
    def backward(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        grad = memory.zeros(ctx.shape)  # of fp32 whatever the table: rows of equal ids are summed
        embedding_wgrad_accumulate(dy, ids, grad, ctx.vocab_start)
        if ctx.dtype != ms.float32:
            narrow = memory.empty(ctx.shape, ctx.dtype)
            copy_cast_(narrow, grad)
            grad = narrow
        return grad, None, None


def embedding(weight: Tensor, ids: Tensor, vocab_start: int) -> Tensor:
    """See ``ops.embedding``."""
    return _Embedding.apply(weight, ids, vocab_start)


def embedding_wgrad_accumulate(
    dy: Tensor, ids: Tensor, main_grad: Tensor, vocab_start: int
) -> None:
    """See ``ops.embedding_wgrad_accumulate``."""
    dy, ids = dy.contiguous(), int64_of(ids)
    vocab, columns = main_grad.shape
    native.embedding_accumulate(
        STORAGE[dy.dtype],
        dy.data_ptr(),
        ids.data_ptr(),
        main_grad.data_ptr(),
        ids.size,
        vocab,
        columns,
        vocab_start,
    )
