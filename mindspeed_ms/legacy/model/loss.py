# SPDX-License-Identifier: Apache-2.0
"""Loss of a micro-batch. Legend: b batch, s sequence."""

from __future__ import annotations

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.core import parallel_state
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
        losses = self.loss_func(logits, label)
        if self.context_group.size == 1:
            return ops.masked_mean(losses, loss_mask)
        own, whole = count_over_sequence(loss_mask, self.context_group)
        share = ops.masked_mean(losses, loss_mask, max(own, 1.0) / max(whole, 1.0))
        return sum_over_sequence(share, self.context_group)
