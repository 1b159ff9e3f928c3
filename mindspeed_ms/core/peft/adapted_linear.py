# SPDX-License-Identifier: Apache-2.0
"""Linear layers with adapters beside them."""

from __future__ import annotations

from typing import Any

from mindspore import Parameter, Tensor

from mindspeed_ms import ops
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.peft.adapter import Adapters
from mindspeed_ms.core.peft.magnitude import magnified
from mindspeed_ms.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    LinearPlan,
    RowParallelLinear,
    add_bias,
    parallel_config_of,
)
from mindspeed_ms.core.tensor_parallel.replicated import ReplicatedLinear
from mindspeed_ms.models.part import LinearSpec


def _adapters(
    plan: LinearPlan, spec: LinearSpec, config: TransformerConfig, is_expert: bool
) -> Adapters:
    """Those of a layer that the ranks of its plan share."""
    sequence_parallel = parallel_config_of(config).sequence_parallel
    return Adapters(
        spec, plan, plan.group, is_expert=is_expert, sequence_parallel=sequence_parallel
    )


class AdaptedColumnLinear(ColumnParallelLinear):
    """A layer whose outputs are split, with adapters.

    Args:
        spec: the layer; the other arguments are those of ``ColumnParallelLinear``.
    """

    def __init__(
        self,
        *sizes: int,
        spec: LinearSpec,
        config: TransformerConfig,
        is_expert: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__(*sizes, config=config, is_expert=is_expert, **rest)
        self.adapters = _adapters(self.plan, spec, config, is_expert)
        # Magnitudes scale the product alone, so the bias comes behind them.
        self.adds_bias_later = self.adapters.has_magnitudes and not self.skip_bias_add
        self.skip_bias_add = self.skip_bias_add or self.adds_bias_later

    def construct(
        self, input_: Tensor, weight: Parameter | None = None
    ) -> tuple[Tensor, Parameter | None]:
        """(output, bias if it was not added)."""
        if self.compute_dtype is not None:
            input_ = ops.cast(input_, self.compute_dtype)
        mine, adapted = ops.branch(input_)
        output, bias = super().construct(mine, weight)
        output = self.adapters.added(adapted, output)
        output = magnified(output, self.adapters, self.weight)
        if self.adds_bias_later and bias is not None:
            return add_bias(output, bias), None
        return output, bias


class AdaptedRowLinear(RowParallelLinear):
    """A layer whose inputs are split, with adapters; see ``AdaptedColumnLinear``."""

    def __init__(
        self,
        *sizes: int,
        spec: LinearSpec,
        config: TransformerConfig,
        is_expert: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__(*sizes, config=config, is_expert=is_expert, **rest)
        self.adapters = _adapters(self.plan, spec, config, is_expert)

    def construct(self, input_: Tensor) -> tuple[Tensor, Parameter | None]:
        """(output, bias, which is not added)."""
        if self.compute_dtype is not None:
            input_ = ops.cast(input_, self.compute_dtype)
        mine, adapted = ops.branch(input_)
        output, bias = super().construct(mine)
        output = self.adapters.added(adapted, output)
        return magnified(output, self.adapters, self.weight), bias


class AdaptedReplicatedLinear(ReplicatedLinear):
    """A layer that every rank holds in full, with adapters."""

    def __init__(
        self, *sizes: int, spec: LinearSpec, config: TransformerConfig, **rest: Any
    ) -> None:
        super().__init__(*sizes, config=config, **rest)
        self.adapters = Adapters(
            spec,
            self.plan,
            self.plan.group,
            sequence_parallel=config.parallel_config.sequence_parallel,
        )

    def construct(self, input_: Tensor) -> Tensor:
        """X -> Y."""
        mine, adapted = ops.branch(ops.cast(input_, self.compute_dtype))
        output = self.adapters.added(adapted, super().construct(mine))
        return magnified(output, self.adapters, self.weight)
