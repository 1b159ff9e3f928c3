"""Transformer layers, their stack, and the head.

Legend: s sequence, b batch, h hidden, v vocabulary, p tensor parallel ranks. Activations are
[s, b, h]; with sequence parallelism they hold s/p rows outside attention and MLP.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.context_parallel import context_parallel, share_of_draws
from mindspeed_ms.core.recompute import checkpoint, forgotten
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.core.tensor_parallel.layers import column_parallel_linear, linear_plan
from mindspeed_ms.core.tensor_parallel.random import MODEL_PARALLEL_RNG, get_rng_tracker
from mindspeed_ms.legacy.model.attention import CoreAttention, ParallelAttention, RotaryTables
from mindspeed_ms.legacy.model.enums import AttnMaskType, AttnType, LayerType
from mindspeed_ms.legacy.model.initialization import StageDraws
from mindspeed_ms.legacy.model.mlp import ParallelMLP
from mindspeed_ms.legacy.model.moe.moe_layer import MoELayer
from mindspeed_ms.legacy.model.multi_latent_attention import MultiLatentAttention
from mindspeed_ms.legacy.model.norm import get_norm
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.recompute_plan import (
    MLP,
    MOE,
    NO_RECOMPUTE,
    NORMS,
    ChunkRecompute,
    LayerRecompute,
    recompute_plan,
)

__all__ = [
    "CoreAttention",
    "ParallelAttention",
    "ParallelLMLogits",
    "ParallelMLP",
    "ParallelTransformer",
    "ParallelTransformerLayer",
    "residual_dropout_stream",
]


def residual_dropout_stream(sequence_parallel: bool) -> AbstractContextManager:
    """Random stream for dropout on the residual path.

    With sequence parallelism ranks hold different rows and must drop differently; without it they
    hold copies and must drop alike.
    """
    return get_rng_tracker().fork(MODEL_PARALLEL_RNG) if sequence_parallel else nullcontext()


class ParallelTransformerLayer(Cell):
    """Norm, attention, residual, norm, MLP (or experts), residual.

    With ``use_sandwich_norm`` the output of attention and of the MLP is normalised again before it
    is added; those norms start at ``attn_post_norm_scale`` and ``ffn_post_norm_scale``.

    Args:
        config: model configuration.
        layer_number: global number of the layer, from 1.
        layer_type: only encoder (self-attention) layers.
        self_attn_mask_type: see ``CoreAttention``.
        drop_path_rate: only 0.
        recompute: parts that are computed again in backward.

    Raises:
        ValueError: a layer type or drop path rate that does not exist here.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        layer_type: enum.Enum = LayerType.encoder,
        self_attn_mask_type: enum.Enum = AttnMaskType.padding,
        drop_path_rate: float = 0.0,
        *,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        if layer_type.value != LayerType.encoder.value or drop_path_rate:
            raise ValueError(
                f"layer_type is {layer_type} and drop_path_rate {drop_path_rate}; decoder-only "
                "models have self-attention layers (LayerType.encoder) with drop_path_rate 0"
            )
        self.layer_number = layer_number
        self.sequence_parallel = config.parallel_config.sequence_parallel
        self.residual_after_norm = config.apply_residual_connection_post_norm
        self.residual_dtype = memory.dtype_of(config.residual_dtype)
        self.hidden_dropout = config.hidden_dropout_rate
        self.context = context_parallel(config.parallel_config)
        self.input_norm = get_norm(config)
        kind = MultiLatentAttention if config.multi_latent_attention else ParallelAttention
        self.attention = kind(
            config,
            layer_number,
            AttnType.self_attn,
            self_attn_mask_type,
            recompute=recompute,
        )
        self.post_attention_norm = get_norm(config)
        if config.has_experts(layer_number - 1):
            self.mlp = MoELayer(config, layer_number=layer_number, recompute=recompute)
            self.feeds_forward_again = MOE in recompute.modules
        else:
            self.mlp = ParallelMLP(config, recompute=recompute)
            self.feeds_forward_again = MLP in recompute.modules
        self.recompute = recompute.modules
        self.attn_post_norm = self.ffn_post_norm = None
        if config.use_sandwich_norm:
            self.attn_post_norm = get_norm(config, scale=config.attn_post_norm_scale)
            self.ffn_post_norm = get_norm(config, scale=config.ffn_post_norm_scale)

    def construct(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: RotaryTables | None = None,
    ) -> Tensor:
        """[s(/p), b, h] -> [s(/p), b, h]."""
        hidden_states, residual = ops.branch(hidden_states)
        normed = self.input_norm(hidden_states)
        with self._norm_again(self.input_norm, normed, hidden_states):
            output, bias = self.attention(normed, attention_mask, rotary_pos_emb=rotary_pos_emb)
        residual = normed if self.residual_after_norm else residual
        hidden_states = self._add(output, bias, residual, self.attn_post_norm)
        hidden_states, residual = ops.branch(hidden_states)
        normed = self.post_attention_norm(hidden_states)
        with self._norm_again(self.post_attention_norm, normed, hidden_states):
            output, bias = self._feed_forward(normed)
        residual = normed if self.residual_after_norm else residual
        return self._add(output, bias, residual, self.ffn_post_norm)

    def _norm_again(
        self, norm: Cell, normed: Tensor, hidden_states: Tensor
    ) -> AbstractContextManager:
        """Do not keep what a norm returned, if that is asked for."""
        if NORMS not in self.recompute or not autograd.is_grad_enabled():
            return nullcontext()
        return forgotten(normed, norm, hidden_states)

    def _feed_forward(self, normed: Tensor) -> tuple[Tensor, Parameter | None]:
        if not self.feeds_forward_again:
            return self.mlp(normed)
        bias = self.mlp.projection.bias if isinstance(self.mlp, ParallelMLP) else None
        return checkpoint(lambda x: self.mlp(x)[0], normed), bias

    def _add(
        self, output: Tensor, bias: Parameter | None, residual: Tensor, post_norm: Cell | None
    ) -> Tensor:
        """The sum: residual + dropout(post_norm(output + bias))."""
        if post_norm is not None:
            output, bias = post_norm(output if bias is None else output + bias), None
        output, residual, bias = (
            None if part is None else autograd.cast(part, self.residual_dtype)
            for part in (output, residual, bias)
        )
        rate = self.hidden_dropout if self.training else 0.0
        if rate == 0.0:
            return ops.bias_dropout_add(output, bias, residual, 0.0, None)
        with residual_dropout_stream(self.sequence_parallel):
            generator = share_of_draws(get_rng_tracker().current(), self.context)
            return ops.bias_dropout_add(output, bias, residual, rate, generator)


class _Identity(autograd.Function):
    """The same values in the graph; a stage without layers hands on more than its leaf."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor) -> Tensor:
        return hidden_states.view(hidden_states.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class NoopTransformerLayer(Cell):
    """A numbered layer without weights that passes its input through.

    Args:
        layer_number: global number of the layer, from 1.
    """

    def __init__(self, layer_number: int) -> None:
        super().__init__()
        self.layer_number = layer_number

    def construct(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: RotaryTables | None = None,
    ) -> Tensor:
        """[s(/p), b, h] -> the same."""
        return _Identity.apply(hidden_states)


class TransformerLayers(Cell):
    """The layers of this rank, named by their global index from 0."""

    def __init__(self, layers: Sequence[tuple[int, Cell]]) -> None:
        super().__init__()
        for index, layer in layers:
            self.insert_child_to_cell(str(index), layer)

    def __iter__(self):  # noqa: ANN204 - an iterator of cells
        return iter(self.cells())

    def __len__(self) -> int:
        return len(self.cells())


@dataclass(slots=True)
class _StageInput:
    """Activations from the previous stage; outside the cell, which would keep them."""

    tensor: Tensor | None = None


def plan_of_this_chunk(config: TransformerConfig) -> tuple[tuple[int, ...], ChunkRecompute]:
    """Layers of this rank's model chunk, by global number from 0, and what they recompute.

    Raises:
        ValueError: the configuration is for another number of stages than there are.
    """
    placement = layer_placement(config, config.parallel_config)
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    if placement.num_stages != stages:
        raise ValueError(
            f"pipeline_model_parallel_size is {placement.num_stages} in the model's configuration, "
            f"but the groups were made for {stages} stages; use the same configuration for both"
        )
    place = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_virtual_pipeline_model_parallel_rank() or 0,
    )
    recompute = recompute_plan(config, config.parallel_config, placement, place)
    return placement.layers_of(*place), recompute


class ParallelTransformer(Cell):
    """The layers of this rank's pipeline stage (of the current model chunk) and the final norm.

    Args:
        config: model configuration; ``layer_placement`` tells which layers are here.
        model_type: kept for the signature; decoder-only stacks are of one kind.
        layer_type: see ``ParallelTransformerLayer``.
        self_attn_mask_type: see ``CoreAttention``.
        post_norm: apply the final norm (where the last layer lives).
        pre_process: this rank feeds the stack from its own embedding.
        post_process: this rank holds the last layer.
        drop_path_rate: only 0.
        num_tokentypes: rows of the embedding's token type table; initial weights depend on it.
    """

    def __init__(  # noqa: PLR0913 - the predecessor's public signature
        self,
        config: TransformerConfig,
        model_type: enum.Enum | None = None,
        layer_type: enum.Enum = LayerType.encoder,
        self_attn_mask_type: enum.Enum = AttnMaskType.padding,
        post_norm: bool = True,
        pre_process: bool = False,
        post_process: bool = False,
        drop_path_rate: float = 0.0,
        *,
        num_tokentypes: int = 0,
    ) -> None:
        super().__init__()
        self.pre_process, self.post_process = pre_process, post_process
        self._stage_input = _StageInput()
        self._sequence_parts = (
            parallel_state.get_tensor_model_parallel_world_size()
            if config.parallel_config.sequence_parallel
            else 1
        )
        noop = frozenset(config.parallel_config.noop_layers or ())

        indices, plan = plan_of_this_chunk(config)

        def build(index: int) -> Cell:
            if index in noop:
                return NoopTransformerLayer(index + 1)
            return ParallelTransformerLayer(
                config,
                index + 1,
                layer_type,
                self_attn_mask_type,
                drop_path_rate,
                recompute=plan.layers.get(index, NO_RECOMPUTE),
            )

        self.build_layer = build
        self.draws = StageDraws(config, build, num_tokentypes)
        layers = []
        for index in indices:
            self.draws.begin_layer(index)
            layers.append((index, build(index)))
        self.layers = TransformerLayers(layers)
        self._groups = plan.groups
        self.final_norm = (
            get_norm(config) if post_process and post_norm and config.use_final_norm else None
        )

    def set_input_tensor(self, input_tensor: Tensor | None) -> None:
        """Activations from the previous pipeline stage, used instead of the argument."""
        self._stage_input.tensor = input_tensor

    def sequence_length(self, hidden_states: Tensor | None) -> int:
        """Tokens per sequence of what enters the layers: the argument or the stage's input."""
        entering = hidden_states if self.pre_process else self._stage_input.tensor
        return entering.shape[0] * self._sequence_parts

    def construct(
        self,
        hidden_states: Tensor | None,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: RotaryTables | None = None,
    ) -> Tensor:
        """[s(/p), b, h] -> [s(/p), b, h]."""
        if not self.pre_process:
            hidden_states = self._stage_input.tensor
        layers = dict(self.layers.name_cells())
        for group in self._groups:

            def run(x: Tensor, indices: tuple[int, ...] = group.layers) -> Tensor:
                for index in indices:
                    x = layers[str(index)](x, attention_mask, rotary_pos_emb)
                return x

            again = group.is_recomputed
            hidden_states = checkpoint(run, hidden_states) if again else run(hidden_states)
        return hidden_states if self.final_norm is None else self.final_norm(hidden_states)


class ParallelLMLogits(Cell):
    """Logits of the vocabulary rows of this rank.

    Args:
        config: model configuration.
        bias: the call must pass a bias.
        compute_dtype: type the input is cast to, default its own.

    Shapes:
        input [s(/p), b, h], table [v/p, h] -> [s, b, v/p], or [s, b, v] when the call asks for
        ``parallel_output=False``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        bias: bool = False,
        compute_dtype: str | mstype.Type | None = None,
    ) -> None:
        super().__init__()
        self.has_bias = bias
        self.compute_dtype = memory.dtype_of(compute_dtype)
        self.plan = linear_plan(config)

    def construct(
        self,
        input_: Tensor,
        word_embedding_table: Parameter,
        parallel_output: bool = True,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Logits [s, b, v/p] or [s, b, v]."""
        if self.has_bias != (bias is not None):
            raise ValueError(
                f"bias is {'missing' if bias is None else 'given'} but the head was built with "
                f"bias={self.has_bias}; both must agree"
            )
        if self.compute_dtype is not None:
            input_ = autograd.cast(input_, self.compute_dtype)
        logits = column_parallel_linear(input_, word_embedding_table, bias, self.plan)
        if parallel_output:
            return logits
        return mappings.gather_from_tensor_model_parallel_region(logits, self.plan.group)
