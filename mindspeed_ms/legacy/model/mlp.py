# SPDX-License-Identifier: Apache-2.0
"""Feed-forward block. Legend: s sequence, b batch, h hidden, f inner size, p tensor ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.recompute import forgotten
from mindspeed_ms.core.tensor_parallel.layers import has_batch_first
from mindspeed_ms.core.tensor_parallel.mappings import exchanged
from mindspeed_ms.legacy.model.from_spec import column_linear, row_linear
from mindspeed_ms.models.feed_forward import MLPSpec
from mindspeed_ms.models.gpt import mlp_spec
from mindspeed_ms.plan.recompute_plan import (
    MLP_ACTIVATION,
    MOE_ACTIVATION,
    NO_RECOMPUTE,
    LayerRecompute,
)

Activation = Callable[[Tensor, Tensor | None], Tensor]
"""(x, bias or None) -> activation(x + bias)."""


def get_activation(name: str) -> Activation:
    """Activation of a ``hidden_act`` name, with the preceding bias fused in.

    Raises:
        ValueError: an unknown name.
    """
    activations: dict[str, Activation] = {
        "gelu": lambda x, bias: ops.gelu(x, bias, approximate="none"),
        "fast_gelu": lambda x, bias: ops.gelu(x, bias, approximate="tanh"),
        "quick_gelu": ops.quick_gelu,
        "swiglu": ops.swiglu,
        "fused_swiglu": ops.swiglu,
        "silu": ops.silu,
        "relu": ops.relu,
        "squared_relu": ops.squared_relu,
    }
    if name not in activations:
        raise ValueError(f"hidden_act is {name!r}; it must be one of {', '.join(activations)}")
    return activations[name]


def activation_between(spec: MLPSpec) -> Activation:
    """What a block does between its matrices."""
    if not spec.is_gated:
        return get_activation(spec.activation)
    if spec.activation == "silu" and spec.limit is None and not spec.offset:
        return ops.swiglu
    gate = cast("ops.Gate", spec.activation)

    def gated(x: Tensor, bias: Tensor | None) -> Tensor:
        limit, offset, alpha = spec.limit, spec.offset, spec.alpha
        return ops.gated(x, bias, gate, limit=limit, offset=offset, alpha=alpha)

    return gated


class ParallelMLP(Cell):
    """h -> f -> h with the inner size split over the tensor parallel group.

    With a gated activation the first matrix is [gate; up], two stacked matrices split one by one,
    so the weights do not depend on the number of ranks.

    Args:
        config: model configuration.
        is_expert: the block is an expert of a mixture: whoever calls it sums the parts of the
            expert tensor parallel ranks.
        spec: the block, default the configuration's dense one.
        groups: of this rank, default the current ones.
        recompute: parts that are computed again in backward.
    """

    def __init__(
        self,
        config: TransformerConfig,
        is_expert: bool = False,
        *,
        spec: MLPSpec | None = None,
        groups: ProcessGroups | None = None,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        is_own = spec is None  # of a script; parts of a model never have the batch first
        spec = spec or mlp_spec(config)
        groups = groups or ProcessGroups.current()
        self.mapping = column_linear(
            spec.mapping,
            config,
            groups,
            is_expert=is_expert,
            skip_bias_add=True,
            keeps_gathered=recompute.keeps_gathered,
        )
        self.activation = activation_between(spec)
        activation = MOE_ACTIVATION if is_expert else MLP_ACTIVATION
        self.activates_again = activation in recompute.modules
        self.projection = row_linear(spec.projection, config, groups, is_expert=is_expert)
        self.batch_first = is_own and has_batch_first(config, self.mapping.plan)

    def construct(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """[s(/p), b, h] -> ([s(/p), b, h], bias that was not added).

        Batch first where the block is a script's own, whose config has ``data_layout: BSH``.
        """
        if self.batch_first:
            hidden_states = exchanged(hidden_states)
        inner, bias = self.mapping(hidden_states)  # [s, b, (2) f/p]
        if bias is not None:
            bias = ops.cast(bias, inner.dtype)
        activated = self.activation(inner, bias)
        if not self.activates_again or not autograd.is_grad_enabled():
            output = self.projection(activated)
        else:
            with forgotten(activated, self.activation, inner, bias):
                output = self.projection(activated)
        return (exchanged(output[0]), output[1]) if self.batch_first else output
