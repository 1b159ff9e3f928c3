# SPDX-License-Identifier: Apache-2.0
"""Transformer layers, their stack, and the head.

Legend: s sequence, b batch, h hidden, v vocabulary, p tensor parallel ranks. Activations are
[s, b, h]; with sequence parallelism they hold s/p rows outside attention and MLP.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import old_names, ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.context_parallel import context_parallel, share_of_draws
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.recompute import checkpoint, forgotten
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.core.tensor_parallel.layers import (
    add_bias,
    column_parallel_linear,
    has_batch_first,
    linear_plan,
)
from mindspeed_ms.core.tensor_parallel.random import MODEL_PARALLEL_RNG, get_rng_tracker
from mindspeed_ms.legacy.model.attention import (
    CoreAttention,
    ParallelAttention,
    RotaryTables,
)
from mindspeed_ms.legacy.model.enums import AttnMaskType, AttnType, LayerType
from mindspeed_ms.legacy.model.gated_delta_net import GatedDeltaNet
from mindspeed_ms.legacy.model.initialization import StageDraws
from mindspeed_ms.legacy.model.lightning_indexer import Choices
from mindspeed_ms.legacy.model.mlp import ParallelMLP
from mindspeed_ms.legacy.model.moe.moe_layer import MoELayer
from mindspeed_ms.legacy.model.multi_latent_attention import MultiLatentAttention
from mindspeed_ms.legacy.model.norm import norm_from_spec
from mindspeed_ms.legacy.model.replaced import GatheredLinear
from mindspeed_ms.models.attention import AttentionSpec, LatentAttentionSpec
from mindspeed_ms.models.feed_forward import MLPSpec, MoESpec
from mindspeed_ms.models.gpt import gpt_spec, layer_spec
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.models.linear_attention import GatedDeltaSpec
from mindspeed_ms.models.model import ModelSpec
from mindspeed_ms.models.replaced import AttentionInsteadSpec, MLPInsteadSpec
from mindspeed_ms.models.width import logits_divisor
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.recompute_plan import (
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


Output = tuple[Tensor, Parameter | None]
"""What a block adds to the residual stream, and a bias that was not added yet."""


class ParallelTransformerLayer(Cell):
    """Norm, attention, residual, norm, MLP (or experts), residual.

    With ``use_parallel_residual`` the second half reads what enters the layer, like the first.
    With ``use_sandwich_norm`` the output of attention and of the MLP is normalised again before it
    is added; those norms start at ``attn_post_norm_scale`` and ``ffn_post_norm_scale``.

    Args:
        config: model configuration.
        layer_number: global number of the layer, from 1.
        layer_type: only encoder (self-attention) layers.
        self_attn_mask_type: see ``CoreAttention``.
        drop_path_rate: only 0.
        spec: sizes and parts, default the configuration's.
        groups: of this rank, default the current ones.
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
        spec: LayerSpec | None = None,
        groups: ProcessGroups | None = None,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        if layer_type.value != LayerType.encoder.value or drop_path_rate:
            raise ValueError(
                f"layer_type is {layer_type} and drop_path_rate {drop_path_rate}; decoder-only "
                "models have self-attention layers (LayerType.encoder) with drop_path_rate 0"
            )
        self.batch_first = spec is None and config.batch_first  # parts of a model never are
        spec = spec or layer_spec(config, layer_number - 1)
        groups = groups or ProcessGroups.current()
        self.layer_number = layer_number
        self.sequence_parallel = config.parallel_config.sequence_parallel
        self.residual_after_norm = config.apply_residual_connection_post_norm
        self.residual_dtype = memory.dtype_of(config.residual_dtype)
        self.hidden_dropout = config.hidden_dropout_rate
        self.context = context_parallel(config.parallel_config)
        self.recompute = recompute.modules
        self.residual_multiplier = config.residual_multiplier
        self.is_parallel = spec.is_parallel
        self.input_norm = spec.input_norm and norm_from_spec(spec.input_norm, config)
        self.attention = _attention(
            spec.attention, config, layer_number, self_attn_mask_type, groups, recompute
        )
        self.post_attention_norm = spec.post_attention_norm and norm_from_spec(
            spec.post_attention_norm, config
        )
        self.shares_norm = config.shares_input_norm
        self.mlp = _feed_forward(spec.mlp, config, layer_number, groups, recompute)
        self.feeds_forward_again = spec.feeds_forward_again(recompute)
        self.attn_post_norm = self.ffn_post_norm = None
        if spec.attn_post_norm is not None:
            self.attn_post_norm = norm_from_spec(spec.attn_post_norm, config)
        if spec.ffn_post_norm is not None:
            self.ffn_post_norm = norm_from_spec(spec.ffn_post_norm, config)

    def construct(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: RotaryTables | None = None,
        inference_params: InferenceContext | None = None,
        queries: Tensor | None = None,
    ) -> Tensor:
        """[s(/p), b, h] -> [s(/p), b, h]; ``queries``: see ``ParallelAttention``."""

        def attention(normed: Tensor) -> Output:
            given = {} if queries is None else {"queries": queries}
            assert self.attention is not None, "a layer without attention does not come here"
            return self.attention(
                normed,
                attention_mask,
                inference_params=inference_params,
                rotary_pos_emb=rotary_pos_emb,
                **given,
            )

        feed_forward = self._feed_forward
        if inference_params is not None and isinstance(self.mlp, MoELayer):
            feed_forward = partial(self.mlp.construct, drops_tokens=False)
        if self.batch_first:
            hidden_states = mappings.exchanged(hidden_states)
        if self.shares_norm:
            x = self._side_by_side(hidden_states, self.input_norm, attention, feed_forward)
            return mappings.exchanged(x) if self.batch_first else x
        if self.is_parallel:
            hidden_states, entered = ops.branch(hidden_states)
        x = hidden_states
        if self.attention is not None:
            x = self._residual(x, self.input_norm, attention, self.attn_post_norm)
        block = (self.post_attention_norm, feed_forward, self.ffn_post_norm)
        if self.is_parallel:
            x = self._residual(entered, *block, onto=x)
        elif self.mlp is not None:
            x = self._residual(x, *block)
        return mappings.exchanged(x) if self.batch_first else x

    def _side_by_side(
        self,
        x: Tensor,
        norm: Cell,
        attention: Callable[[Tensor], Output],
        feed: Callable[[Tensor], Output],
    ) -> Tensor:
        """Both blocks read what one norm returned."""
        x, residual = ops.branch(x)
        normed = norm(x)
        with self._norm_again(norm, normed, x):
            first, second = ops.branch(normed)
            attended, fed = attention(first), feed(second)
        residual = self._add(*attended, residual, self.attn_post_norm)
        return self._add(*fed, residual, self.ffn_post_norm)

    def _residual(
        self,
        x: Tensor,
        norm: Cell | None,
        block: Callable[[Tensor], Output],
        post_norm: Cell | None,
        onto: Tensor | None = None,
    ) -> Tensor:
        """The sum: x + dropout(post_norm(block(norm(x)))), or that of another tensor than x."""
        residual = onto
        if residual is None:
            x, residual = ops.branch(x)
        if norm is None:
            return self._add(*block(x), residual, post_norm)
        normed = norm(x)
        with self._norm_again(norm, normed, x):
            output, bias = block(normed)
        return self._add(output, bias, normed if self.residual_after_norm else residual, post_norm)

    def _norm_again(self, norm: Cell, normed: Tensor, x: Tensor) -> AbstractContextManager:
        """Do not keep what a norm returned, if that is asked for."""
        if NORMS not in self.recompute or not autograd.is_grad_enabled():
            return nullcontext()
        return forgotten(normed, norm, x)

    def _feed_forward(self, normed: Tensor) -> Output:
        block = self.mlp
        assert block is not None, "a layer without a block does not come here"
        if not self.feeds_forward_again:
            return block(normed)
        bias = block.projection.bias if isinstance(block, ParallelMLP) else None
        return checkpoint(lambda x: block(x)[0], normed), bias

    def _add(
        self, output: Tensor, bias: Parameter | None, residual: Tensor, post_norm: Cell | None
    ) -> Tensor:
        """The sum: residual + dropout(multiplier * post_norm(output + bias))."""
        is_scaled = self.residual_multiplier != 1.0
        if bias is not None and (is_scaled or post_norm is not None):
            output, bias = add_bias(output, bias), None
        if post_norm is not None:
            output = post_norm(output)
        dtype = self.residual_dtype
        output, residual = ops.cast(output, dtype), ops.cast(residual, dtype)
        if is_scaled:
            output = ops.scaled(output, self.residual_multiplier)
        bias = None if bias is None else ops.cast(bias, dtype)
        rate = self.hidden_dropout if self.training else 0.0
        if rate == 0.0:
            return ops.bias_dropout_add(output, bias, residual, 0.0, None)
        with residual_dropout_stream(self.sequence_parallel):
            generator = share_of_draws(get_rng_tracker().current(), self.context)
            return ops.bias_dropout_add(output, bias, residual, rate, generator)


def _attention(
    spec: AttentionSpec | LatentAttentionSpec | GatedDeltaSpec | AttentionInsteadSpec,
    config: TransformerConfig,
    layer_number: int,
    mask_type: enum.Enum,
    groups: ProcessGroups,
    recompute: LayerRecompute,
) -> ParallelAttention | MultiLatentAttention | GatedDeltaNet | GatheredLinear | None:
    """The attention of a description, or what is in its place."""
    if isinstance(spec, AttentionInsteadSpec):
        return _instead(spec, config, groups, recompute)
    if isinstance(spec, GatedDeltaSpec):
        return GatedDeltaNet(config, layer_number, spec=spec, groups=groups, recompute=recompute)
    place = (config, layer_number, AttnType.self_attn, mask_type)
    if isinstance(spec, LatentAttentionSpec):
        return MultiLatentAttention(*place, spec=spec, groups=groups, recompute=recompute)
    return ParallelAttention(*place, spec=spec, groups=groups, recompute=recompute)


def _feed_forward(
    spec: MLPSpec | MoESpec | MLPInsteadSpec,
    config: TransformerConfig,
    layer_number: int,
    groups: ProcessGroups,
    recompute: LayerRecompute,
) -> ParallelMLP | MoELayer | GatheredLinear | None:
    """The feed-forward block of a description, or what is in its place."""
    if isinstance(spec, MLPInsteadSpec):
        return _instead(spec, config, groups, recompute)
    if isinstance(spec, MLPSpec):
        return ParallelMLP(config, spec=spec, groups=groups, recompute=recompute)
    return MoELayer(
        config, layer_number=layer_number, spec=spec, groups=groups, recompute=recompute
    )


def _instead(
    spec: AttentionInsteadSpec | MLPInsteadSpec,
    config: TransformerConfig,
    groups: ProcessGroups,
    recompute: LayerRecompute,
) -> GatheredLinear | None:
    """A linear layer, or nothing: the residual stream passes by."""
    if spec.linear is None:
        return None
    return GatheredLinear(config, spec=spec.linear, groups=groups, recompute=recompute)


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
        inference_params: InferenceContext | None = None,
    ) -> Tensor:
        """[s(/p), b, h] -> the same."""
        return _Identity.apply(hidden_states)


class TransformerLayers(Cell):
    """The layers of this rank, named by their global index from 0."""

    def __init__(self, layers: Sequence[tuple[int, Cell]]) -> None:
        super().__init__()
        for index, layer in layers:
            self.insert_child_to_cell(str(index), layer)

    def __iter__(self) -> Iterator[Cell]:
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
        spec: the whole model, default the configuration's.
        groups: of this rank, default the current ones.
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
        spec: ModelSpec | None = None,
        groups: ProcessGroups | None = None,
    ) -> None:
        super().__init__()
        self.pre_process, self.post_process = pre_process, post_process
        self._stage_input = _StageInput()
        groups = groups or ProcessGroups.current()
        is_cut = config.parallel_config.sequence_parallel
        self._sequence_parts = groups.tensor.size if is_cut else 1
        self.batch_first = spec is None and config.batch_first
        spec = spec or gpt_spec(config)
        draws = StageDraws(spec, config.parallel_config.use_cpu_initialization)
        indices, plan = plan_of_this_chunk(config)
        layers = []
        for index in indices:
            draws.begin_layer(index)
            layer = spec.layers[index]
            if layer is None:
                layers.append((index, NoopTransformerLayer(index + 1)))
                continue
            built = ParallelTransformerLayer(
                config,
                index + 1,
                layer_type,
                self_attn_mask_type,
                drop_path_rate,
                spec=layer,
                groups=groups,
                recompute=plan.layers.get(index, NO_RECOMPUTE),
            )
            layers.append((index, built))
        self.layers = TransformerLayers(layers)
        self._choices = Choices()
        for _, layer in layers:
            attention = getattr(layer, "attention", None)
            if isinstance(attention, MultiLatentAttention):
                attention.choices = self._choices
        self._groups = plan.groups
        self.final_norm = None
        if post_process and post_norm and spec.final_norm is not None:
            self.final_norm = norm_from_spec(spec.final_norm, config)

    def set_input_tensor(self, input_tensor: Tensor | None) -> None:
        """Activations from the previous pipeline stage, used instead of the argument."""
        self._stage_input.tensor = input_tensor

    def sequence_length(self, hidden_states: Tensor | None) -> int:
        """Tokens per sequence of what enters the layers: the argument or the stage's input."""
        entering = self._entering(hidden_states)
        assert entering is not None, "a stage gets activations before it is asked for tables"
        return entering.shape[0] * self._sequence_parts

    def _entering(self, hidden_states: Tensor | None) -> Tensor | None:
        """The stage's input, or the argument: the only source of a stack that stands alone."""
        received = None if self.pre_process else self._stage_input.tensor
        return hidden_states if received is None else received

    def construct(
        self,
        hidden_states: Tensor | None,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: RotaryTables | None = None,
        inference_params: InferenceContext | None = None,
    ) -> Tensor:
        """[s(/p), b, h] -> [s(/p), b, h]."""
        hidden_states = self._entering(hidden_states)
        if self.batch_first:
            hidden_states = mappings.exchanged(hidden_states)
        layers, own = dict(self.layers.name_cells()), dict[int, Tensor]()
        for group in self._groups:

            def run(x: Tensor, indices: tuple[int, ...] = group.layers) -> Tensor:
                self._choices.current = own  # backward may come back to an earlier forward
                for index in indices:
                    x = layers[str(index)](x, attention_mask, rotary_pos_emb, inference_params)
                return x

            again = group.is_recomputed
            hidden_states = checkpoint(run, hidden_states) if again else run(hidden_states)
        if self.final_norm is not None:
            hidden_states = self.final_norm(hidden_states)
        return mappings.exchanged(hidden_states) if self.batch_first else hidden_states


class ParallelLMLogits(Cell):
    """Logits of the vocabulary rows of this rank, divided and capped as the configuration says.

    Args:
        config: model configuration.
        bias: the call must pass a bias.
        compute_dtype: type the input is cast to, default its own.

    Shapes:
        input [s(/p), b, h], table [v/p, h] -> [s, b, v/p], or [s, b, v] when the call asks for
        ``parallel_output=False``; batch first both, or none.
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
        self.batch_first = has_batch_first(config, self.plan)
        """Whether the input is [b, s/p, h]; a model with the sequence first sets it."""
        self.divisor, self.cap = logits_divisor(config), config.final_logit_softcapping

    def construct(
        self,
        input_: Tensor,
        word_embedding_table: Parameter,
        parallel_output: bool = True,
        bias: Tensor | None = None,
        is_whole: bool = False,
        trains_table: bool = True,
    ) -> Tensor:
        """Logits [s, b, v/p] or [s, b, v].

        Args:
            input_: see the class.
            word_embedding_table: see the class.
            parallel_output: keep the logits split over the group.
            bias: [v/p].
            is_whole: the input has the whole sequence, and is the same on every rank.
            trains_table: the table gets a gradient.
        """
        if self.has_bias != (bias is not None):
            raise ValueError(
                f"bias is {'missing' if bias is None else 'given'} but the head was built with "
                f"bias={self.has_bias}; both must agree"
            )
        if self.compute_dtype is not None:
            input_ = ops.cast(input_, self.compute_dtype)
        plan = self.plan
        if is_whole or not trains_table:
            is_split = plan.sequence_parallel and not is_whole
            plan = replace(plan, sequence_parallel=is_split, trains_weight=trains_table)
        if self.batch_first:
            input_ = mappings.exchanged(input_)
        logits = column_parallel_linear(input_, word_embedding_table, bias, plan)
        if self.batch_first:
            logits = mappings.exchanged(logits)
        if self.divisor != 1.0:
            logits = ops.scaled(logits, 1.0 / self.divisor)
        if self.cap is not None:
            logits = ops.softcapped(logits, self.cap)
        if parallel_output:
            return logits
        return mappings.gather_from_tensor_model_parallel_region(logits, self.plan.group)


__getattr__ = old_names.of(__name__)
