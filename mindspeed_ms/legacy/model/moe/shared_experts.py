# SPDX-License-Identifier: Apache-2.0
"""The expert that every token passes. Legend: s sequence, b batch, h hidden, p tensor ranks."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.reshaping import reshaped
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.recompute import checkpoint
from mindspeed_ms.legacy.model.from_spec import whole_linear
from mindspeed_ms.legacy.model.mlp import ParallelMLP
from mindspeed_ms.models.feed_forward import SharedExpertSpec
from mindspeed_ms.plan.recompute_plan import NO_RECOMPUTE, SHARED_EXPERTS, LayerRecompute


class SharedExpertMLP(Cell):
    """A dense block beside the experts, split over the tensor parallel group.

    Args:
        config: model configuration.
        spec: the block; with a gate each token's output is weighed by the sigmoid of a score.
        groups: of this rank, default the current ones.
        recompute: parts that are computed again in backward.

    Source: Megatron-LM ``SharedExpertMLP`` (behaviour).
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        spec: SharedExpertSpec,
        groups: ProcessGroups | None = None,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        self.mlp = ParallelMLP(config, spec=spec.mlp, groups=groups, recompute=recompute)
        self.gate = None if spec.gate is None else whole_linear(spec.gate, config)
        self.computes_again = SHARED_EXPERTS in recompute.modules

    def construct(self, hidden_states: Tensor) -> Tensor:
        """[s(/p), b, h] -> [s(/p), b, h]."""
        if self.computes_again:
            return checkpoint(self._compute, hidden_states)
        return self._compute(hidden_states)

    def _compute(self, hidden_states: Tensor) -> Tensor:
        output, _ = self.mlp(hidden_states)
        if self.gate is None:
            return output
        logits = ops.cast(reshaped(self.gate(hidden_states), (-1, 1)), mstype.float32)
        every = np.arange(logits.shape[0], dtype=np.int32)[:, None]
        weighed = ops.combine_rows(
            reshaped(output, (-1, output.shape[-1])),
            ops.router_scores(logits, "sigmoid"),
            memory.from_numpy(every),
        )
        return reshaped(weighed, output.shape)
