# SPDX-License-Identifier: Apache-2.0
"""Loss of a micro-batch. Legend: b batch, s sequence."""

from __future__ import annotations

from contextlib import nullcontext

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd
from mindspeed_ms.core import distillation, loss_options, parallel_state
from mindspeed_ms.core.context_parallel import count_over_sequence, sum_over_sequence
from mindspeed_ms.core.teacher import Teacher


class LossWithMask(Cell):
    """Mean of a per-token loss over the tokens whose mask is not 0.

    With context parallelism the mean is over the whole sequence, however many of its tokens count
    on which rank: every rank returns it, and its gradients are those of its own tokens, times the
    group size, because gradients are averaged over data x context parallel ranks.

    Args:
        loss_func: cell ``(logits, label) -> loss`` with the shape of the labels.
        owns_logits: nobody reads the logits after this loss, neither in forward nor in backward:
            their gradient may take their place (``vocab_parallel_cross_entropy``).
    """

    def __init__(
        self, loss_func: Cell, *args: object, owns_logits: bool = False, **kwargs: object
    ) -> None:
        super().__init__(*args, **kwargs)
        self.loss_func, self.owns_logits = loss_func, owns_logits
        self.context_group = parallel_state.get_context_parallel_group()

    def construct(self, logits: Tensor, label: Tensor, loss_mask: Tensor) -> Tensor:
        """Logits [x, y, v], labels and mask [x, y] in the same order -> scalar fp32."""
        teaching = distillation.current()
        if not (teaching.is_on and self.training and autograd.is_grad_enabled()):
            losses = self._of_labels(logits, label, self.owns_logits)
        elif teaching.live is not None:
            return self._of_teacher(teaching.live, logits, label, loss_mask)
        else:
            losses = self._of_saved(teaching, logits, label)
        return self._reduced(losses, loss_mask, loss_options.current().sums)

    def _reduced(self, losses: Tensor, loss_mask: Tensor, sums: bool) -> Tensor:
        group = self.context_group
        if group.size == 1 and not sums:
            return ops.masked_mean(losses, loss_mask)
        own, whole = count_over_sequence(loss_mask, group)
        share = max(own, 1.0) / (1.0 if sums else max(whole, 1.0))
        return sum_over_sequence(ops.masked_mean(losses, loss_mask, share), group)

    def _of_teacher(
        self, teacher: Teacher, logits: Tensor, label: Tensor, loss_mask: Tensor
    ) -> Tensor:
        """The teacher's divergence, and the labels' loss as far as it has a weight."""
        group = parallel_state.get_tensor_model_parallel_group()
        sums, weight = loss_options.current().sums, teacher.labels_weight
        mine = logits
        if weight:
            logits, mine = ops.branch(logits)
        with nullcontext() if weight else autograd.no_grad():
            of_labels = self._reduced(self._of_labels(mine, label), loss_mask, sums)
        diverging = self._reduced(teacher.losses(logits, group), loss_mask, teacher.sums)
        teacher.note(of_labels, diverging)
        loss = diverging * teacher.weight
        return loss + of_labels * weight if weight else loss

    def _of_saved(
        self, teaching: distillation.Distillation, logits: Tensor, label: Tensor
    ) -> Tensor:
        """Losses [x, y] of a run that saves logits, or reads them."""
        losses = self._of_labels(logits, label)
        group = parallel_state.get_tensor_model_parallel_group()
        if teaching.loads is None:
            teaching.keep(logits, group)
            return losses
        found = teaching.teacher(logits.shape[1], logits.shape[0])
        if found is None:
            return losses
        taught = distillation.teacher_loss(logits, *found, group)
        alpha = teaching.loads.alpha
        return taught if alpha == 1.0 else losses * (1.0 - alpha) + taught * alpha

    def _of_labels(self, logits: Tensor, label: Tensor, owns_logits: bool = False) -> Tensor:
        options = loss_options.current()
        smoothing: tuple[float, ...] = ()
        if options.label_smoothing:
            group = parallel_state.get_tensor_model_parallel_group()
            smoothing = (options.smoothing_of(logits.shape[-1] * group.size),)
        spending = {"spends_logits": True} if owns_logits else {}
        return self.loss_func(logits, label, *smoothing, **spending)
