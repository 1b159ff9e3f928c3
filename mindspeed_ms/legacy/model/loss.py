"""Loss of a micro-batch. Legend: b batch, s sequence."""

from __future__ import annotations

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.core import parallel_state


class LossWithMask(Cell):
    """Mean of a per-token loss over the tokens whose mask is not 0.

    With context parallelism each rank returns its local mean times the group size, as Megatron
    does, because gradients are averaged over data x context parallel ranks.

    Args:
        loss_func: cell ``(logits, label) -> loss`` with the shape of the labels.
    """

    def __init__(self, loss_func: Cell, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.loss_func = loss_func
        self.context_parallel_size = parallel_state.get_context_parallel_world_size()

    def construct(self, logits: Tensor, label: Tensor, loss_mask: Tensor) -> Tensor:
        """Logits [x, y, v], labels and mask [x, y] in the same order -> scalar fp32."""
        losses = self.loss_func(logits, label)
        return ops.masked_mean(losses, loss_mask, self.context_parallel_size)
