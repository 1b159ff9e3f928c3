# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts in the place of a feed-forward block.

Legend: s sequence, b batch, h hidden, p tensor parallel ranks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.reshaping import reshaped
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.legacy.model.from_spec import whole_linear
from mindspeed_ms.legacy.model.moe.experts import GroupedMLP, SequentialMLP, local_experts
from mindspeed_ms.legacy.model.moe.router import Routing, TopKRouter
from mindspeed_ms.legacy.model.moe.shared_experts import SharedExpertMLP
from mindspeed_ms.legacy.model.moe.token_dispatcher import get_token_dispatcher
from mindspeed_ms.models.feed_forward import MoESpec
from mindspeed_ms.models.gpt import moe_spec
from mindspeed_ms.plan.recompute_plan import NO_RECOMPUTE, LayerRecompute


class MoELayer(Cell):
    """Router, exchange of tokens, experts, and the expert that all tokens share.

    Experts with biases compute one after the other, also with ``moe_grouped_gemm``; the shared
    expert has none.

    Args:
        config: model configuration with its ``moe_config``.
        submodules: must be None; the configuration names the parts.
        layer_number: global number of the layer, from 1.
        spec: the mixture, default the configuration's.
        groups: of this rank, default the current ones.
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
        spec: MoESpec | None = None,
        groups: ProcessGroups | None = None,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        if submodules is not None:
            raise ValueError("submodules must be None; moe_config names the parts of a MoE layer")
        spec, groups = spec or moe_spec(config), groups or ProcessGroups.current()
        # Megatron's order of construction, and so of initial weights.
        self.router = TopKRouter(config, layer_number or 1, spec=spec, groups=groups)
        self.fc1_latent_proj = self.fc2_latent_proj = None
        if spec.latent_down is not None and spec.latent_up is not None:
            self.fc1_latent_proj = whole_linear(spec.latent_down, config)
            self.fc2_latent_proj = whole_linear(spec.latent_up, config)
        self.expert_tensor_group = groups.expert_tensor
        self.weighs_input = config.moe_config.moe_apply_probs_on_input
        indices = local_experts(spec.num_experts, groups.expert)
        is_grouped = config.moe_config.moe_grouped_gemm and not spec.expert.mapping.has_bias
        kind = GroupedMLP if is_grouped else SequentialMLP
        self.experts = kind(len(indices), config, spec=spec, groups=groups, recompute=recompute)
        self.token_dispatcher = get_token_dispatcher(len(indices), indices, config, groups)
        self.shared_experts = None
        if spec.shared is not None:
            self.shared_experts = SharedExpertMLP(
                config, spec=spec.shared, groups=groups, recompute=recompute
            )
        self.overlaps_shared_experts = config.moe_config.moe_shared_expert_overlap

    def construct(self, hidden_states: Tensor, drops_tokens: bool = True) -> tuple[Tensor, None]:
        """[s, b, h] -> ([s, b, h], no bias)."""
        shared: list[Tensor] = []
        judged, inner = ops.branch(hidden_states)
        common = inner
        if self.shared_experts is not None:
            inner, common = ops.branch(inner)

        def compute_shared() -> None:
            if self.shared_experts is not None:
                shared.append(self.shared_experts(common))

        routing = self.router(judged, drops_tokens)
        if self.fc1_latent_proj is not None:
            inner = self.fc1_latent_proj(inner)
        tokens = reshaped(inner, (-1, inner.shape[-1]))
        if self.weighs_input:
            tokens, routing = _weighed(tokens, routing)
        rows, counts, way = self.token_dispatcher.token_permutation(
            tokens, routing, compute_shared if self.overlaps_shared_experts else None
        )
        rows = self.experts(rows, counts)
        output = reshaped(self.token_dispatcher.token_unpermutation(rows, way), inner.shape)
        if self.fc2_latent_proj is not None:
            output = self.fc2_latent_proj(output)
        if not self.overlaps_shared_experts:
            compute_shared()
        for part in shared:
            output = ops.bias_dropout_add(part, None, output, 0.0, None)
        return output, None


def _weighed(tokens: Tensor, routing: Routing) -> tuple[Tensor, Routing]:
    """Tokens [T, h] times the weight of their only expert, and a routing that weighs nothing."""
    every = memory.from_numpy(np.arange(tokens.shape[0], dtype=np.int32)[:, None])
    ones = memory.from_numpy(np.ones(routing.probs.shape, np.float32))
    return ops.combine_rows(tokens, routing.probs, every), replace(routing, probs=ones)
