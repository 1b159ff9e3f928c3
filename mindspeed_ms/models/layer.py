# SPDX-License-Identifier: Apache-2.0
"""A transformer layer, and the layers behind the model: of learned queries, of further tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mindspeed_ms.models.attention import AttentionSpec, LatentAttentionSpec
from mindspeed_ms.models.feed_forward import MLPSpec, MoESpec
from mindspeed_ms.models.linear_attention import GatedDeltaSpec
from mindspeed_ms.models.part import (
    Child,
    Composite,
    LinearSpec,
    NormSpec,
    TableSpec,
)
from mindspeed_ms.models.replaced import AttentionInsteadSpec, MLPInsteadSpec
from mindspeed_ms.models.sizes import STATISTICS, RankSizes
from mindspeed_ms.plan.recompute_plan import (
    CORE_ATTENTION,
    MLA_UP_PROJECTION,
    MLP,
    MOE,
    NORMS,
    SHARED_EXPERTS,
    LayerRecompute,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec(Composite):
    """Norm, attention, residual, norm, feed-forward block, residual."""

    input_norm: NormSpec | None
    attention: AttentionSpec | LatentAttentionSpec | GatedDeltaSpec | AttentionInsteadSpec
    post_attention_norm: NormSpec | None
    mlp: MLPSpec | MoESpec | MLPInsteadSpec
    attn_post_norm: NormSpec | None = None
    """Normalises what attention adds to the residual stream."""
    ffn_post_norm: NormSpec | None = None
    """Normalises what the feed-forward block adds to it."""
    is_parallel: bool = False
    """Whether both blocks read what enters the layer; without a norm of its own before it, the
    feed-forward block reads what the first norm returned."""

    def children(self) -> Iterator[Child]:
        """In the order of construction."""
        if self.input_norm is not None:
            yield Child("input_norm", "input_layernorm", self.input_norm)
        yield Child("attention", "self_attention", self.attention)
        if self.post_attention_norm is not None:
            yield Child("post_attention_norm", "pre_mlp_layernorm", self.post_attention_norm)
        yield Child("mlp", "mlp", self.mlp)
        if self.attn_post_norm is not None:
            yield Child("attn_post_norm", "post_self_attn_layernorm", self.attn_post_norm)
        if self.ffn_post_norm is not None:
            yield Child("ffn_post_norm", "post_mlp_layernorm", self.ffn_post_norm)

    @property
    def hidden_size(self) -> int:
        """Channels of the residual stream."""
        attention = self.attention
        if isinstance(attention, AttentionInsteadSpec):
            return attention.hidden
        return attention.out_proj.outputs

    @property
    def num_blocks(self) -> int:
        """Of attention and feed-forward block those that are there."""
        every = (self.attention, self.mlp)
        return sum(next(block.parameters(), None) is not None for block in every)

    @property
    def norms(self) -> tuple[NormSpec, ...]:
        """Of the residual stream and of what is added to it."""
        every = (self.input_norm, self.post_attention_norm, self.attn_post_norm, self.ffn_post_norm)
        return tuple(norm for norm in every if norm is not None)

    def operations(self, seq_length: int) -> float:
        """Floating point operations of a token's forward, over all ranks."""
        return sum(self.attention.operations(seq_length)) + self.mlp.operations

    def repeated_operations(self, seq_length: int, recompute: LayerRecompute) -> float:
        """Operations of a token that backward does again."""
        again = 0.0
        if CORE_ATTENTION in recompute.modules:
            again += self.attention.operations(seq_length)[1]
        attention = self.attention
        if isinstance(attention, LatentAttentionSpec) and MLA_UP_PROJECTION in recompute.modules:
            again += attention.widening_operations
        if self.feeds_forward_again(recompute):
            again += self.mlp.operations
        elif SHARED_EXPERTS in recompute.modules and isinstance(self.mlp, MoESpec):
            again += 0.0 if self.mlp.shared is None else self.mlp.shared.operations
        return again

    def feeds_forward_again(self, recompute: LayerRecompute) -> bool:
        """Whether backward computes the whole feed-forward block again."""
        return (MOE if isinstance(self.mlp, MoESpec) else MLP) in recompute.modules

    def kept_bytes(self, sizes: RankSizes, recompute: LayerRecompute) -> int:
        """What one micro-batch keeps from forward to backward on one rank.

        ===================  =============================================
        norms                r s b h + 8 s b each
        inputs of both       2 w s b h (S instead of s where the gather
        blocks               is kept)
        attention            see there
        feed-forward         see there
        ===================  =============================================

        Dropout masks are replayed from counters and not kept.
        """
        hidden = self.hidden_size
        norm = sizes.stream(hidden) + sizes.rows * STATISTICS
        total = norm * len(self.norms)
        if NORMS not in recompute.modules:
            rows = sizes.tokens if recompute.keeps_gathered else sizes.rows
            total += self.num_blocks * rows * hidden * sizes.width
        total += self.attention.kept_bytes(sizes, recompute)
        return total + (
            0 if self.feeds_forward_again(recompute) else self.mlp.kept_bytes(sizes, recompute)
        )

    def backward_bytes(self, sizes: RankSizes) -> int:
        """What backward needs beside that: gradients at its widest place."""
        whole = sizes.tokens * self.hidden_size * sizes.width
        return self.mlp.widest_bytes(sizes) + 2 * whole


@dataclass(frozen=True, kw_only=True, slots=True)
class FurtherSpec(Composite):
    """Norms of both inputs, a projection from 2 h to h, a transformer layer, a norm."""

    enorm: NormSpec
    hnorm: NormSpec
    eh_proj: LinearSpec
    layer: LayerSpec
    final_norm: NormSpec

    def children(self) -> Iterator[Child]:
        """In the order of construction."""
        yield Child("enorm", "enorm", self.enorm)
        yield Child("hnorm", "hnorm", self.hnorm)
        yield Child("eh_proj", "eh_proj", self.eh_proj)
        yield Child("transformer_layer", "transformer_layer", self.layer)
        yield Child("final_norm", "final_layernorm", self.final_norm)

    def operations(self, seq_length: int) -> float:
        """Of a token's forward, without the head."""
        return self.layer.operations(seq_length) + self.eh_proj.operations

    def kept_bytes(self, sizes: RankSizes, recompute: LayerRecompute) -> int:
        """What one micro-batch keeps, without the head."""
        hidden = self.enorm.dim
        norm = sizes.stream(hidden) + sizes.rows * STATISTICS
        own = 3 * norm + 2 * sizes.normed(hidden)
        return own + self.layer.kept_bytes(sizes, recompute)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryLayerSpec(Composite):
    """A transformer layer whose queries come from a table of positions (Zeng et al., 2021)."""

    query_embeddings: TableSpec
    layer: LayerSpec

    def children(self) -> Iterator[Child]:
        """In the order of construction."""
        yield Child("query_embeddings", "query_embeddings", self.query_embeddings)
        yield Child("transformer_layer", "transformer_layer", self.layer)

    def operations(self, seq_length: int) -> float:
        """Of a token's forward; queries are projected apart from keys and values, with them."""
        attention = self.layer.attention
        assert isinstance(attention, AttentionSpec), "heads have one width"
        return self.layer.operations(seq_length) + attention.qkv_proj.operations

    def kept_bytes(self, sizes: RankSizes, recompute: LayerRecompute) -> int:
        """What one micro-batch keeps: the layer's, and the queries before their projection."""
        hidden = self.query_embeddings.width
        return self.layer.kept_bytes(sizes, recompute) + sizes.normed(hidden)
