# SPDX-License-Identifier: Apache-2.0
"""A layer whose queries are learned for every position (Zeng et al., 2021, PanGu-alpha).

Legend: s sequence, b batch, h hidden, p tensor parallel ranks.
"""

from __future__ import annotations

import enum

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.context_parallel import context_parallel
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.recompute import checkpoint
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.legacy.model.attention import AttentionMask
from mindspeed_ms.legacy.model.position_embedding import PositionEmbedding
from mindspeed_ms.legacy.model.transformer import ParallelTransformerLayer
from mindspeed_ms.models.layer import QueryLayerSpec


class QueryLayer(Cell):
    """Looks up a query for the position of each token and lets it attend to the model's output.

    The residual stream of the layer is the model's output, normalised by the final norm; keys and
    values are computed from it behind the layer's own norm, queries from the table as it is.

    Args:
        config: model configuration.
        mask_type: see ``CoreAttention``.
        spec: sizes and parts.
        groups: of this rank.

    Source: PanGu-alpha's published description (figure 3: top query layer).
    """

    def __init__(
        self,
        config: TransformerConfig,
        mask_type: enum.Enum,
        spec: QueryLayerSpec,
        groups: ProcessGroups,
    ) -> None:
        super().__init__()
        self.group = groups.tensor
        self.sequence_parallel = config.parallel_config.sequence_parallel
        self.context = context_parallel(config.parallel_config)
        self.query_embeddings = PositionEmbedding(spec.query_embeddings)
        self.transformer_layer = ParallelTransformerLayer(
            config,
            config.num_layers + 1,
            self_attn_mask_type=mask_type,
            spec=spec.layer,
            groups=groups,
        )
        self.dtype = memory.dtype_of(config.compute_dtype)
        self.recomputes = config.recompute_granularity == "full"

    def construct(
        self,
        hidden_states: Tensor,
        position_ids: Tensor | None,
        attention_mask: AttentionMask = None,
        inference_params: InferenceContext | None = None,
    ) -> Tensor:
        """Hidden states [s(/p), b, h] and position ids [b, s] -> [s(/p), b, h].

        Without ids positions count from 0.
        """
        if position_ids is None:
            position_ids = self._positions(hidden_states)
        queries = self.query_embeddings(memory.transposed(position_ids))  # [s, b, h]
        if self.sequence_parallel:
            queries = mappings.scatter_to_sequence_parallel_region(queries, self.group)
        queries = ops.cast(queries, self.dtype)

        def layer(hidden: Tensor, queries: Tensor) -> Tensor:
            return self.transformer_layer(
                hidden, attention_mask, None, inference_params, queries=queries
            )

        if self.recomputes:
            return checkpoint(layer, hidden_states, queries)
        return layer(hidden_states, queries)

    def _positions(self, hidden_states: Tensor) -> Tensor:
        length, batch = hidden_states.shape[:2]
        length *= self.group.size if self.sequence_parallel else 1
        places = np.arange(length)
        if self.context is not None:
            places = self.context.positions(length * self.context.size)
        return memory.from_numpy(np.tile(places.astype(np.int32), (batch, 1)))
