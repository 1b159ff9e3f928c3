"""Layers behind the model that predict tokens further ahead (DeepSeek-AI, 2024, V3).

Legend: s sequence, b batch, h hidden, p tensor parallel ranks, K further tokens. Depth k predicts
the token k + 1 places ahead from what depth k - 1 made of a place (depth 0 is the model) and from
the embedding of the token k places ahead.
"""

from __future__ import annotations

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
from mindspeed_ms.core.recompute import checkpoint
from mindspeed_ms.core.tensor_parallel import ColumnParallelLinear, mappings
from mindspeed_ms.legacy.model.attention import AttentionMask, RotaryTables
from mindspeed_ms.legacy.model.initialization import normal
from mindspeed_ms.legacy.model.norm import get_norm


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
        depth: number of the layer among its kind, from 0.
        build_layer: global index -> transformer layer; those behind the model have numbers on.

    Shapes:
        embeddings and hidden states [s(/p), b, h] -> [s(/p), b, h].

    Source: Megatron-LM ``MultiTokenPredictionLayer`` (order of operations).
    """

    def __init__(self, config: TransformerConfig, depth: int, build_layer: Any) -> None:
        super().__init__()
        self.sequence_parallel = config.parallel_config.sequence_parallel
        self.enorm = get_norm(config)
        self.hnorm = get_norm(config)
        self.eh_proj = ColumnParallelLinear(
            2 * config.hidden_size,
            config.hidden_size,
            config=config,
            init_method=normal(config.init_method_std),
            bias=False,
            param_init_dtype=config.params_dtype,
            compute_dtype=config.compute_dtype,
        )
        self.transformer_layer = build_layer(config.num_layers + depth)
        self.final_norm = get_norm(config)
        self.recomputes = config.recompute_granularity == "full"

    def construct(
        self,
        embeddings: Tensor,
        hidden_states: Tensor,
        attention_mask: AttentionMask,
        rotary_pos_emb: RotaryTables | None,
    ) -> Tensor:
        """Hidden states of this depth, normalized."""
        both = ops.join_columns((self.enorm(embeddings), self.hnorm(hidden_states)))
        projected, _ = self.eh_proj(both)  # [s, b, h/p]
        group = self.eh_proj.plan.group
        projected = mappings.gather_from_tensor_model_parallel_region(projected, group)
        if self.sequence_parallel:
            projected = mappings.scatter_to_sequence_parallel_region(projected, group)

        def layer(x: Tensor) -> Tensor:
            return self.transformer_layer(x, attention_mask, rotary_pos_emb)

        output = checkpoint(layer, projected) if self.recomputes else layer(projected)
        return self.final_norm(output)


class MultiTokenPredictionBlock(Cell):
    """All depths, one behind the other.

    Args:
        config: model configuration with ``mtp_num_layers``.
        build_layer: see ``MultiTokenPredictionLayer``.
    """

    def __init__(self, config: TransformerConfig, build_layer: Any) -> None:
        super().__init__()
        self.layers = _Depths(
            [
                MultiTokenPredictionLayer(config, depth, build_layer)
                for depth in range(config.mtp_num_layers or 0)
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
        for layer, ahead in zip(self.layers, embeddings, strict=True):
            hidden_states = layer(ahead, hidden_states, attention_mask, rotary_pos_emb)
            outputs.append(hidden_states)
        return outputs


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
    def forward(ctx: Any, loss: Tensor, weight: float, *further: Tensor) -> Tensor:
        ctx.weight, ctx.count = weight, len(further)
        return loss.view(loss.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, *([grad * ctx.weight] * ctx.count)


def with_further_losses(loss: Tensor, further: Sequence[Tensor], factor: float) -> Tensor:
    """The main loss, whose backward also starts that of the mean of the further losses.

    Args:
        loss: scalar.
        further: one scalar per depth, noted for the log.
        factor: weight of their mean.
    """
    for depth, value in enumerate(further):
        aux_losses.record(loss_name(depth), 1, value)
    return _WithFurtherLosses.apply(loss, factor / len(further), *further)
