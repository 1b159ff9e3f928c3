# SPDX-License-Identifier: Apache-2.0
"""Products of a linear layer whose weight the caller holds. Legend: s, b, i inputs, o outputs."""

from __future__ import annotations

from typing import Any

from mindspore import Parameter, Tensor
from mindspore.nn import Cell

from mindspeed_ms.backend import memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.tensor_parallel.layers import LinearPlan, column_parallel_linear


class LinearWithGradAccumulationAndAsyncCommunication(Cell):
    """Y = X W^T + b with W [o/p, i]; backward sums dX over the tensor parallel group meanwhile.

    Args:
        bias: the call passes a bias.
        gradient_accumulation_fusion: add the weight gradient straight into the main gradient.
        sequence_parallel: X holds a part of the sequence.
        grad_output_buffer: must be None.
        allreduce_dgrad: sum dX over the group.
        transpose_b: W is [o, i]; False: it is [i, o].
        data_layout: BSH or SBH, where the sequence is.
    """

    def __init__(
        self,
        bias: bool = True,
        gradient_accumulation_fusion: bool = False,
        sequence_parallel: bool = False,
        grad_output_buffer: None = None,
        allreduce_dgrad: bool = True,
        transpose_b: bool = True,
        data_layout: str = "SBH",
        **unused: Any,
    ) -> None:
        super().__init__()
        if grad_output_buffer is not None:
            raise ValueError("grad_output_buffer is given; weight gradients are not put off here")
        group = parallel_state.get_tensor_model_parallel_group()
        self.has_bias, self.transpose_b = bias, transpose_b
        self.swaps = data_layout == "BSH" and sequence_parallel and group.size > 1
        self.plan = LinearPlan(
            group=group,
            sequence_parallel=sequence_parallel and group.size > 1,
            gradient_accumulation_fusion=gradient_accumulation_fusion,
            sums_over_group=allreduce_dgrad,
        )

    def construct(
        self, input_: Tensor, weight: Parameter, bias: Tensor | None = None, *unused: Any
    ) -> Tensor:
        """Shapes: [s(/p), b, i] -> [s, b, o/p], or with BSH [b, s(/p), i] -> [b, s, o/p]."""
        if self.swaps:
            input_ = memory.contiguous(input_.swapaxes(0, 1))
        weight = weight if self.transpose_b else weight.swapaxes(0, 1)
        output = column_parallel_linear(input_, weight, bias if self.has_bias else None, self.plan)
        return memory.contiguous(output.swapaxes(0, 1)) if self.swaps else output


class LinearWithFrozenWeight(LinearWithGradAccumulationAndAsyncCommunication):
    """The same for a weight with ``requires_grad = False``: no weight gradient is computed."""

    def construct(
        self, input_: Tensor, weight: Parameter, bias: Tensor | None = None, *unused: Any
    ) -> Tensor:
        """See the base.

        Raises:
            ValueError: the weight is trainable.
        """
        if weight.requires_grad:
            raise ValueError(f"{weight.name} is trainable; set its requires_grad = False")
        return super().construct(input_, weight, bias)
