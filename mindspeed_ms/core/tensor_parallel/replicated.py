# SPDX-License-Identifier: Apache-2.0
"""A linear layer that every tensor parallel rank holds in full."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.parameter import InitMethod, ShardSpec, create_parameter
from mindspeed_ms.core.tensor_parallel.layers import LinearPlan, column_parallel_linear


class ReplicatedLinear(Cell):
    """Y = X W^T without communication, for outputs that all ranks need and that are narrow.

    Each rank computes the rows of X it holds. With sequence parallelism these are a part, so the
    gradient of W is summed over the tensor parallel group with those of the norms.

    Args:
        input_size: columns of W.
        output_size: rows of W.
        config: model configuration.
        init_method: values of W.
        compute_dtype: type the input is cast to, default the configured one.
        bias: add a bias of zeros at first.

    Shapes:
        [s(/p), b, input_size] -> [s(/p), b, output_size].

    Source: Megatron-LM's ``TELinear`` with ``parallel_mode='duplicated'`` (behaviour).
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: TransformerConfig,
        init_method: InitMethod,
        compute_dtype: str | mstype.Type | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        parallel = config.parallel_config
        self.compute_dtype = memory.dtype_of(compute_dtype or config.compute_dtype)
        self.plan = LinearPlan(
            group=Group(ranks=(comm.get_rank(),), rank=0, name="this rank"),
            gradient_accumulation_fusion=parallel.gradient_accumulation_fusion,
        )
        self.weight = create_parameter(
            (output_size, input_size),
            init_method,
            dtype=config.params_dtype,
            shard=ShardSpec(partial_gradient=parallel.sequence_parallel),
        )
        self.bias = None
        if bias:
            self.bias = create_parameter(
                (output_size,),
                lambda shape: np.zeros(shape, np.float32),
                dtype=config.params_dtype,
                shard=ShardSpec(partial_gradient=parallel.sequence_parallel),
            )

    def construct(self, input_: Tensor) -> Tensor:
        """X -> Y."""
        input_ = ops.cast(input_, self.compute_dtype)
        return column_parallel_linear(input_, self.weight, self.bias, self.plan)
