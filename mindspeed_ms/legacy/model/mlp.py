"""Feed-forward block. Legend: s sequence, b batch, h hidden, f inner size, p tensor ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.parameter import InitMethod
from mindspeed_ms.core.recompute import forgotten
from mindspeed_ms.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from mindspeed_ms.legacy.model.initialization import normal, scaled_normal
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
        "swiglu": ops.swiglu,
        "fused_swiglu": ops.swiglu,
        "silu": ops.silu,
        "squared_relu": ops.squared_relu,
    }
    if name not in activations:
        raise ValueError(f"hidden_act is {name!r}; it must be one of {', '.join(activations)}")
    return activations[name]


def hidden_activation(config: TransformerConfig) -> str:
    """Name of the activation between the two matrices.

    Raises:
        ValueError: gated_linear_unit and hidden_act contradict each other.
    """
    gated = config.gated_linear_unit
    hidden_act = "swiglu" if gated and config.hidden_act == "silu" else config.hidden_act
    if gated != (hidden_act in ("swiglu", "fused_swiglu")):
        raise ValueError(
            f"gated_linear_unit is {gated} with hidden_act {config.hidden_act!r}; a gated unit "
            "needs hidden_act 'swiglu' and swiglu is always gated"
        )
    return hidden_act


class ParallelMLP(Cell):
    """h -> f -> h with the inner size split over the tensor parallel group.

    With a gated activation the first matrix is [gate; up], two stacked matrices split one by one,
    so the weights do not depend on the number of ranks.

    Args:
        config: model configuration.
        is_expert: the block is an expert of a mixture: whoever calls it sums the parts of the
            expert tensor parallel ranks.
        ffn_hidden_size: f, default the configured one.
        has_bias: whether the two matrices have biases, default as configured.
        init_method: values of ``mapping``, default normal(init_method_std).
        output_layer_init_method: values of ``projection``, default divided by sqrt(2 layers).
        recompute: parts that are computed again in backward.
    """

    def __init__(
        self,
        config: TransformerConfig,
        is_expert: bool = False,
        *,
        ffn_hidden_size: int | None = None,
        has_bias: bool | None = None,
        init_method: InitMethod | None = None,
        output_layer_init_method: InitMethod | None = None,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        hidden_act, gated = hidden_activation(config), config.gated_linear_unit
        if has_bias is None:
            has_bias = config.mlp_has_bias or config.add_bias_linear
        width = ffn_hidden_size or config.ffn_hidden_size
        self.mapping = ColumnParallelLinear(
            config.hidden_size,
            width * (2 if gated else 1),
            config=config,
            init_method=init_method or normal(config.init_method_std),
            bias=has_bias,
            stride=2 if gated else 1,
            skip_bias_add=True,
            is_expert=is_expert,
            param_init_dtype=config.params_dtype,
            compute_dtype=config.compute_dtype,
        )
        self.mapping.plan = replace(
            self.mapping.plan, keeps_gathered_input=recompute.keeps_gathered
        )
        self.activation = get_activation(hidden_act)
        activation = MOE_ACTIVATION if is_expert else MLP_ACTIVATION
        self.activates_again = activation in recompute.modules
        self.projection = RowParallelLinear(
            width,
            config.hidden_size,
            config=config,
            init_method=output_layer_init_method or scaled_normal(config),
            bias=has_bias,
            input_is_parallel=True,
            skip_bias_add=True,
            is_expert=is_expert,
            param_init_dtype=config.params_dtype,
            compute_dtype=config.compute_dtype,
        )

    def construct(self, hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        """[s, b, h] -> ([s, b, h], bias that was not added)."""
        inner, bias = self.mapping(hidden_states)  # [s, b, (2) f/p]
        activated = self.activation(inner, bias)
        if not self.activates_again or not autograd.is_grad_enabled():
            return self.projection(activated)
        with forgotten(activated, self.activation, inner, bias):
            return self.projection(activated)
