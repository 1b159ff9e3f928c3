# SPDX-License-Identifier: Apache-2.0
"""Cross entropy of logits that are split along the vocabulary.

Legend: s sequence, b batch, v padded vocabulary over all ranks, p ranks in the group.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group, ReduceOp
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.tensor_parallel.index_range import IGNORED_LABEL, require_range


class _VocabParallelCrossEntropy(autograd.Function):
    """loss = log(sum exp(x - m)) + m - x_target, each term summed (m: maximised) over the ranks.

    Backward: softmax(x) - onehot(target), times the incoming gradient. Only the logits, the row
    maximum and the row sum are kept; nothing else of size v is stored between the two passes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        label_smoothing: float,
        group: Group,
        spends_logits: bool,
    ) -> Tensor:
        logits = memory.contiguous(logits)
        vocab_size = logits.shape[-1] * group.size
        vocab_start = logits.shape[-1] * group.rank
        row_max = ops.ce_max(logits)
        comm.all_reduce(row_max, op=ReduceOp.MAX, group=group)
        sum_exp, predicted = ops.ce_sum(logits, target, row_max, vocab_start)
        comm.all_reduce(sum_exp, group=group)
        comm.all_reduce(predicted, group=group)
        smoothing, sum_logits = 0.0, None
        if label_smoothing > 0.0:
            smoothing = label_smoothing * vocab_size / (vocab_size - 1)
            sum_logits = ops.ce_sum_logits(logits)
            comm.all_reduce(sum_logits, group=group)
        loss = ops.ce_loss(row_max, sum_exp, predicted, sum_logits, smoothing, vocab_size)
        ctx.save_for_backward(logits, target, row_max, sum_exp)
        ctx.vocab_start, ctx.smoothing, ctx.vocab_size = vocab_start, smoothing, vocab_size
        ctx.spends_logits = spends_logits
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, *sums = ctx.saved_tensors
        dlogits = ops.ce_backward(
            logits,
            target,
            tuple(sums),
            memory.contiguous(grad),
            ctx.vocab_start,
            smoothing=ctx.smoothing,
            vocab_size=ctx.vocab_size,
            spends_logits=ctx.spends_logits,
        )
        return dlogits, None, None, None, None


def vocab_parallel_cross_entropy(
    vocab_parallel_logits: Tensor,
    target: Tensor,
    label_smoothing: float = 0.0,
    tp_group: Group | None = None,
    spends_logits: bool = False,
) -> Tensor:
    """Loss per token, not reduced.

    Args:
        vocab_parallel_logits: [..., v/p], this rank's columns.
        target: token ids [...], counted over the whole vocabulary; -100 where nothing is learned
            (the loss there means nothing, and its weight must be 0).
        label_smoothing: weight taken from the target and spread over all v tokens. The spread
            covers the whole vocabulary for every group size, so all layouts agree.
        tp_group: group the vocabulary is split over, default the tensor parallel group.
        spends_logits: the gradient may take the place of the logits: nobody else keeps them, so
            that they need their memory once. Wrong where another loss or an operation behind
            them reads them in its backward.

    Returns:
        fp32 tensor [...].

    Raises:
        ValueError: shapes that do not match, a label_smoothing outside [0, 1), or a target that
            no column stands for (on CPU; see ``require_range``).
    """
    if tuple(vocab_parallel_logits.shape[:-1]) != tuple(target.shape):
        raise ValueError(
            f"logits have shape {tuple(vocab_parallel_logits.shape)} and targets "
            f"{tuple(target.shape)}; targets must have the shape of the logits without the last "
            "dimension"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")
    group = tp_group or parallel_state.get_tensor_model_parallel_group()
    require_range(target, vocab_parallel_logits.shape[-1] * group.size, "label", IGNORED_LABEL)
    return _VocabParallelCrossEntropy.apply(
        vocab_parallel_logits, target, label_smoothing, group, spends_logits
    )


class VocabParallelCrossEntropy(Cell):
    """Per-token cross entropy of vocabulary-parallel logits; see the function.

    Call with ``(vocab_parallel_logits, target, label_smoothing=0.0, spends_logits=False)``.

    Args:
        unused: accepted for the predecessor's signature, which takes anything.
        tp_group: group that splits the vocabulary, default the tensor parallel group.
    """

    def __init__(self, *unused: object, tp_group: Group | None = None, **_unused: object) -> None:
        super().__init__()
        self.tp_group = tp_group

    def construct(
        self,
        vocab_parallel_logits: Tensor,
        target: Tensor,
        label_smoothing: float = 0.0,
        spends_logits: bool = False,
    ) -> Tensor:
        """Loss [...] for logits [..., v/p]."""
        if target.dtype not in (ms.int32, ms.int64):
            raise ValueError(f"targets have type {target.dtype}; token ids must be int32 or int64")
        return vocab_parallel_cross_entropy(
            vocab_parallel_logits, target, label_smoothing, self.tp_group, spends_logits
        )
