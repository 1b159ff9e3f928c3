# SPDX-License-Identifier: Apache-2.0
"""Loss of a micro-batch. Legend: b batch, s sequence."""

from __future__ import annotations

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd
from mindspeed_ms.core import distillation, loss_options, parallel_state
from mindspeed_ms.core.context_parallel import count_over_sequence, sum_over_sequence


class LossWithMask(Cell):
    """Mean of a per-token loss over the tokens whose mask is not 0.

    With context parallelism the mean is over the whole sequence, however many of its tokens count
    on which rank: every rank returns it, and its gradients are those of its own tokens, times the
    group size, because gradients are averaged over data x context parallel ranks.

    Args:
        loss_func: cell ``(logits, label) -> loss`` with the shape of the labels.
    """

    def __init__(self, loss_func: Cell, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.loss_func = loss_func
        self.context_group = parallel_state.get_context_parallel_group()

    def construct(self, logits: Tensor, label: Tensor, loss_mask: Tensor) -> Tensor:
        """Logits [x, y, v], labels and mask [x, y] in the same order -> scalar fp32."""
        losses = self._losses(logits, label)
        sums, group = loss_options.current().sums, self.context_group
        if group.size == 1 and not sums:
            return ops.masked_mean(losses, loss_mask)
        own, whole = count_over_sequence(loss_mask, group)
        share = max(own, 1.0) / (1.0 if sums else max(whole, 1.0))
        return sum_over_sequence(ops.masked_mean(losses, loss_mask, share), group)

    def _losses(self, logits: Tensor, label: Tensor) -> Tensor:
        losses = self._of_labels(logits, label)
        teaching = distillation.current()
        if not (teaching.is_on and self.training and autograd.is_grad_enabled()):
            return losses
        group = parallel_state.get_tensor_model_parallel_group()
        if teaching.loads is None:
            teaching.keep(logits, group)
            return losses
        teacher = teaching.teacher(logits.shape[1], logits.shape[0])
        if teacher is None:
            return losses
        taught = distillation.teacher_loss(logits, *teacher, group)
        alpha = teaching.loads.alpha
        return taught if alpha == 1.0 else losses * (1.0 - alpha) + taught * alpha

    def _of_labels(self, logits: Tensor, label: Tensor) -> Tensor:
        options = loss_options.current()
        if not options.label_smoothing:
            return self.loss_func(logits, label)
        group = parallel_state.get_tensor_model_parallel_group()
        smoothing = options.smoothing_of(logits.shape[-1] * group.size)
        return self.loss_func(logits, label, smoothing)
