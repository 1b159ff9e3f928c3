# SPDX-License-Identifier: Apache-2.0
"""A linear layer in place of attention or of a feed-forward block.

Legend: s sequence, b batch, h hidden, p tensor parallel ranks.
"""

from __future__ import annotations

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.legacy.model.from_spec import column_linear
from mindspeed_ms.models.part import LinearSpec
from mindspeed_ms.plan.recompute_plan import LayerRecompute


class GatheredLinear(Cell):
    """Y = X W^T + b whose columns ranks compute, and gather.

    Args:
        config: model configuration.
        spec: the layer.
        groups: of this rank.
        recompute: parts that are computed again in backward.

    Source: Megatron-LM ``ColumnParallelLinearGathered`` (behaviour).
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        spec: LinearSpec,
        groups: ProcessGroups,
        recompute: LayerRecompute,
    ) -> None:
        super().__init__()
        self.linear = column_linear(spec, config, groups, keeps_gathered=recompute.keeps_gathered)
        self.group = groups.tensor

    def construct(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        """[s, b, h] (sequence parallel: [s/p, b, h]) -> (the same shape, no bias).

        What else attention is given is not read: tokens do not see each other.
        """
        own, _ = self.linear(hidden_states)
        whole = mappings.gather_from_tensor_model_parallel_region(own, self.group)
        if self.linear.plan.sequence_parallel:
            whole = mappings.scatter_to_sequence_parallel_region(whole, self.group)
        return whole, None
