# SPDX-License-Identifier: Apache-2.0
"""Layers behind the model that predict tokens further ahead (DeepSeek-AI, 2024, V3).

Legend: s sequence, b batch, h hidden, p tensor parallel ranks, K further tokens. Depth k predicts
the token k + 1 places ahead from what depth k - 1 made of a place (depth 0 is the model) and from
the embedding of the token k places ahead.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import aux_losses
from mindspeed_ms.core.context_parallel import ContextParallel, gather_tokens
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.recompute import checkpoint
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.legacy.model.attention import AttentionMask, RotaryTables
from mindspeed_ms.legacy.model.from_spec import column_linear
from mindspeed_ms.legacy.model.norm import norm_from_spec
from mindspeed_ms.legacy.model.transformer import ParallelTransformerLayer
from mindspeed_ms.models.layer import FurtherSpec


def loss_name(depth: int) -> str:
    """Name of a depth's loss in the log, depths counted from 0."""
    return f"mtp_{depth + 1} loss"


def moved_ahead(values: Tensor, context: ContextParallel | None) -> Tensor:
    """Every place gets the value of the next place of the sequence; the last one gets 0.

    Shapes: [b, s], with context parallelism this rank's share of s; ids or a mask of 0 and 1.
    """
    whole = (
        memory.as_numpy(memory.contiguous(values))
        if context is None
        else gather_tokens(values, context)
    )
    moved = np.zeros_like(whole)
    moved[:, :-1] = whole[:, 1:]
    if context is not None:
        moved = moved[:, context.positions(whole.shape[1])]
    return memory.from_numpy(np.ascontiguousarray(moved, memory.numpy_dtype(values.dtype)))


class MultiTokenPredictionLayer(Cell):
    """Norms of both inputs, a projection from 2 h to h, a transformer layer, a norm.

    Args:
        config: model configuration.
        depth: number of the layer among its kind, from 0; layers behind the model count on.
        mask_type: see ``CoreAttention``.
        spec: sizes and parts.
        groups: of this rank.

    Shapes:
        embeddings and hidden states [s(/p), b, h] -> [s(/p), b, h].

    Source: Megatron-LM ``MultiTokenPredictionLayer`` (order of operations).
    """

    def __init__(
        self,
        config: TransformerConfig,
        depth: int,
        mask_type: enum.Enum,
        spec: FurtherSpec,
        groups: ProcessGroups,
    ) -> None:
        super().__init__()
        self.sequence_parallel = config.parallel_config.sequence_parallel
        self.enorm = norm_from_spec(spec.enorm, config)
        self.hnorm = norm_from_spec(spec.hnorm, config)
        self.eh_proj = column_linear(spec.eh_proj, config, groups)
        self.transformer_layer = ParallelTransformerLayer(
            config,
            config.num_layers + depth + 1,
            self_attn_mask_type=mask_type,
            spec=spec.layer,
            groups=groups,
        )
        self.final_norm = norm_from_spec(spec.final_norm, config)
        self.recomputes = config.recompute_granularity == "full"

    def construct(
        self,
        embeddings: Tensor,
        hidden_states: Tensor,
        attention_mask: AttentionMask,
        rotary_pos_emb: RotaryTables | None,
        inference_params: InferenceContext | None = None,
    ) -> Tensor:
        """Hidden states of this depth, normalized."""
        both = ops.join_columns((self.enorm(embeddings), self.hnorm(hidden_states)))
        projected, _ = self.eh_proj(both)  # [s, b, h/p]
        group = self.eh_proj.plan.group
        projected = mappings.gather_from_tensor_model_parallel_region(projected, group)
        if self.sequence_parallel:
            projected = mappings.scatter_to_sequence_parallel_region(projected, group)

        def layer(x: Tensor) -> Tensor:
            return self.transformer_layer(x, attention_mask, rotary_pos_emb, inference_params)

        again = self.recomputes and inference_params is None
        output = checkpoint(layer, projected) if again else layer(projected)
        return self.final_norm(output)


class MultiTokenPredictionBlock(Cell):
    """All depths, one behind the other.

    Args:
        config: model configuration.
        mask_type: see ``CoreAttention``.
        specs: the layers, or the one that serves every depth.
        groups: of this rank.
    """

    def __init__(
        self,
        config: TransformerConfig,
        mask_type: enum.Enum,
        specs: Sequence[FurtherSpec],
        groups: ProcessGroups,
    ) -> None:
        super().__init__()
        self.layers = _Depths(
            [
                MultiTokenPredictionLayer(config, depth, mask_type, spec, groups)
                for depth, spec in enumerate(specs)
            ]
        )

    def construct(
        self,
        embeddings: Sequence[Tensor],
        hidden_states: Tensor,
        attention_mask: AttentionMask,
        rotary_pos_emb: RotaryTables | None,
    ) -> list[Tensor]:
        """Hidden states of every depth, from the embeddings of the tokens 1, 2, ... K ahead."""
        outputs = []
        for depth, ahead in enumerate(embeddings):
            layer, _ = self.layer_of(depth)
            hidden_states = layer(ahead, hidden_states, attention_mask, rotary_pos_emb)
            outputs.append(hidden_states)
        return outputs

    def layer_of(self, depth: int) -> tuple[Cell, int]:
        """The layer of a depth, and how often it has served before."""
        own = list(self.layers)
        return own[min(depth, len(own) - 1)], max(0, depth - len(own) + 1)


class _Depths(Cell):
    """Layers under their numbers."""

    def __init__(self, layers: Sequence[Cell]) -> None:
        super().__init__()
        for index, layer in enumerate(layers):
            self.insert_child_to_cell(str(index), layer)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells())


class _WithFurtherLosses(autograd.Function):
    """The main loss; the further ones share its gradient and do not show in its value."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, weights: tuple[float, ...], *further: Tensor) -> Tensor:
        ctx.weights = weights
        return loss.view(loss.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, *(grad * weight for weight in ctx.weights)


def with_further_losses(
    loss: Tensor,
    further: Sequence[Tensor],
    factor: float,
    shares: Sequence[float] | None = None,
) -> Tensor:
    """The main loss, whose backward also starts that of the mean of the further losses.

    Args:
        loss: scalar.
        further: one scalar per depth, noted for the log.
        factor: weight of their mean.
        shares: tokens of each over those of the main loss, where losses are weighed by tokens;
            None: means are weighed.
    """
    for depth, value in enumerate(further):
        aux_losses.record(loss_name(depth), 1, value)
    weight = factor / len(further)
    weights = tuple(weight * share for share in shares or [1.0] * len(further))
    return _WithFurtherLosses.apply(loss, weights, *further)
