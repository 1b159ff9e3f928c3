"""A mixture of experts in the place of a feed-forward block.

Legend: s sequence, b batch, h hidden, p tensor parallel ranks.
"""

from __future__ import annotations

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.legacy.model.moe.experts import GroupedMLP, SequentialMLP, local_experts
from mindspeed_ms.legacy.model.moe.router import TopKRouter
from mindspeed_ms.legacy.model.moe.shared_experts import SharedExpertMLP
from mindspeed_ms.legacy.model.moe.token_dispatcher import get_token_dispatcher
from mindspeed_ms.plan.recompute_plan import NO_RECOMPUTE, LayerRecompute


class MoELayer(Cell):
    """Router, exchange of tokens, experts, and the expert that all tokens share.

    Experts with biases compute one after the other, also with ``moe_grouped_gemm``; the shared
    expert has none.

    Args:
        config: model configuration with its ``moe_config``.
        submodules: must be None; the configuration names the parts.
        layer_number: global number of the layer, from 1.
        recompute: parts that are computed again in backward.

    Shapes:
        [s(/p), b, h] -> ([s(/p), b, h], None); the ranks of a tensor parallel group hold different
        tokens (sequence parallelism).

    Raises:
        ValueError: submodules are given.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: None = None,
        layer_number: int | None = None,
        *,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        if submodules is not None:
            raise ValueError("submodules must be None; moe_config names the parts of a MoE layer")
        moe = config.moe_config
        # Megatron's order of construction, and so of initial weights.
        self.router = TopKRouter(config, layer_number or 1)
        indices = local_experts(config)
        has_bias = config.mlp_has_bias or config.add_bias_linear
        kind = GroupedMLP if moe.moe_grouped_gemm and not has_bias else SequentialMLP
        self.experts = kind(len(indices), config, recompute=recompute)
        self.token_dispatcher = get_token_dispatcher(len(indices), indices, config)
        self.shared_experts = None
        if moe.moe_shared_expert_intermediate_size is not None:
            self.shared_experts = SharedExpertMLP(config, recompute=recompute)
        self.overlaps_shared_experts = moe.moe_shared_expert_overlap

    def construct(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        """[s, b, h] -> ([s, b, h], no bias)."""
        shared: list[Tensor] = []

        def compute_shared() -> None:
            if self.shared_experts is not None:
                shared.append(self.shared_experts(hidden_states))

        routing = self.router(hidden_states)
        rows, counts, way = self.token_dispatcher.token_permutation(
            hidden_states.reshape((-1, hidden_states.shape[-1])),
            routing,
            compute_shared if self.overlaps_shared_experts else None,
        )
        rows = self.experts(rows, counts)
        output = self.token_dispatcher.token_unpermutation(rows, way)
        output = output.reshape(hidden_states.shape)
        if not self.overlaps_shared_experts:
            compute_shared()
        for part in shared:
            output = ops.bias_dropout_add(part, None, output, 0.0, None)
        return output, None
