# SPDX-License-Identifier: Apache-2.0
"""Self-attention: of grouped heads, and from narrow vectors.

Legend: h hidden, N heads, G key/value groups, D channels of a head; S tokens of a sequence on a
rank, b micro-batch, t tensor parallel ranks, w bytes of the compute type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mindspeed_ms.models.indexer import IndexerSpec
from mindspeed_ms.models.part import Child, Composite, LinearSpec, NormSpec
from mindspeed_ms.models.scores import ScoresSpec
from mindspeed_ms.models.sizes import RankSizes
from mindspeed_ms.plan.recompute_plan import CORE_ATTENTION, MLA_UP_PROJECTION, LayerRecompute


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec(Composite):
    """Attention with one matrix for queries, keys and values.

    Its rows are grouped by key/value group: [N/G queries, key, value], D rows each; with gates
    [N/G queries, N/G gates, key, value].
    """

    num_heads: int
    num_groups: int
    head_dim: int
    core_attention: ScoresSpec
    out_proj: LinearSpec
    qkv_proj: LinearSpec
    q_layernorm: NormSpec | None = None
    k_layernorm: NormSpec | None = None
    normalizes_all_heads: bool = False
    """Whether these norms take the heads together."""
    limit: float | None = None
    """Queries, keys and values lie between this and its negative."""
    length_eps: float | None = None
    """Added to the mean square of each head of queries and keys, by whose root they are divided;
    None: they are not."""
    has_gate: bool = False
    """Whether rows of gates follow the queries of each group; see ``gpt_spec``."""
    rotates: bool = True
    """Whether queries and keys are rotated, in a model with rotary positions."""
    rotates_locally: bool = False
    """Whether by the tables of layers with a window."""

    def children(self) -> Iterator[Child]:
        """Megatron builds the output projection before the inputs', weights are drawn so."""
        yield Child("core_attention", "core_attention", self.core_attention)
        yield Child("out_proj", "linear_proj", self.out_proj)
        yield Child("qkv_proj", "linear_qkv", self.qkv_proj)
        if self.q_layernorm is not None and self.k_layernorm is not None:
            yield Child("q_layernorm", "q_layernorm", self.q_layernorm)
            yield Child("k_layernorm", "k_layernorm", self.k_layernorm)

    @property
    def row_blocks(self) -> tuple[int, ...]:
        """Rows of queries, gates if there are any, key and value in a group of the matrix."""
        queries = self.num_heads // self.num_groups * self.head_dim
        gates = (queries,) if self.has_gate else ()
        return queries, *gates, self.head_dim, self.head_dim

    def cached_numbers(self, ranks: int) -> int:
        """Numbers that a token leaves in the key/value cache of a rank: 2 G D / t, at least 2 D."""
        return 2 * max(1, self.num_groups // ranks) * self.head_dim

    def operations(self, seq_length: int) -> tuple[float, float]:
        """Of a token's forward: (projections, scores and weighted values)."""
        projections = self.qkv_proj.operations + self.out_proj.operations
        seen = self.core_attention.seen(seq_length)
        return projections, 4.0 * seen * self.num_heads * self.head_dim

    def kept_bytes(self, sizes: RankSizes, recompute: LayerRecompute) -> int:
        """Q, k, v and the result, w S b (2 N + 2 G) D / t; with the kernel's 4 S b N / t."""
        heads = self.num_heads // sizes.tensor
        groups = max(1, self.num_groups // sizes.tensor)
        kept = sizes.tokens * sizes.width * 2 * (heads + groups) * self.head_dim
        if self.has_gate:  # the gate, and what it multiplies
            kept += sizes.tokens * sizes.width * 2 * heads * self.head_dim
        if self.normalizes_all_heads:  # the norms keep the heads of all ranks
            every = (self.num_heads + self.num_groups) * self.head_dim
            kept += sizes.tokens * sizes.width * every
        if self.q_layernorm is not None and self.q_layernorm.heads > 1:  # twice in fp32
            kept += sizes.tokens * 2 * 4 * (heads + groups) * self.head_dim
        if self.limit is not None:  # before it
            kept += sizes.tokens * sizes.width * (heads + 2 * groups) * self.head_dim
        return kept if CORE_ATTENTION in recompute.modules else kept + 4 * sizes.tokens * heads


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentAttentionSpec(Composite):
    """Attention whose queries, keys and values come from narrow vectors (DeepSeek-AI, 2024)."""

    num_heads: int
    qk_head_dim: int
    """Channels of a query or key head that are not rotated."""
    rope_dim: int
    """Rotated channels; those of the keys are one vector for all heads."""
    v_head_dim: int
    core_attention: ScoresSpec
    out_proj: LinearSpec
    kv_down_proj: LinearSpec
    kv_up_proj: LinearSpec
    q_proj: LinearSpec | None = None
    """Queries straight from the hidden states."""
    q_down_proj: LinearSpec | None = None
    q_up_proj: LinearSpec | None = None
    q_layernorm: NormSpec | None = None
    kv_layernorm: NormSpec | None = None
    indexer: IndexerSpec | None = None
    """Chooses the keys that queries see. None: they see all, or those of ``chooser``."""
    chooser: int | None = None
    """Number of the layer, from 1, whose indexer chooses the keys, if this layer has none."""

    @property
    def query_dim(self) -> int:
        """Channels of a query or key head."""
        return self.qk_head_dim + self.rope_dim

    def children(self) -> Iterator[Child]:
        """Megatron builds the output projection before the inputs', weights are drawn so."""
        yield Child("core_attention", "core_attention", self.core_attention)
        if self.indexer is not None:
            yield Child("indexer", "core_attention.indexer", self.indexer)
        yield Child("out_proj", "linear_proj", self.out_proj)
        if self.q_proj is not None:
            yield Child("q_proj", "linear_q_proj", self.q_proj)
        if self.q_down_proj is not None and self.q_up_proj is not None:
            yield Child("q_down_proj", "linear_q_down_proj", self.q_down_proj)
            yield Child("q_up_proj", "linear_q_up_proj", self.q_up_proj)
        yield Child("kv_down_proj", "linear_kv_down_proj", self.kv_down_proj)
        yield Child("kv_up_proj", "linear_kv_up_proj", self.kv_up_proj)
        if self.q_layernorm is not None:
            yield Child("q_layernorm", "q_layernorm", self.q_layernorm)
        if self.kv_layernorm is not None:
            yield Child("kv_layernorm", "kv_layernorm", self.kv_layernorm)

    def cached_numbers(self, ranks: int) -> int:
        """Numbers that a token leaves in a cache, on every rank: rank + R, the indexer's key."""
        return self.kv_down_proj.outputs + (0 if self.indexer is None else self.indexer.head_dim)

    @property
    def widening_operations(self) -> float:
        """Of a token's forward from narrow vectors to heads."""
        parts = (self.q_up_proj, self.kv_up_proj)
        return sum(part.operations for part in parts if part is not None)

    def operations(self, seq_length: int) -> tuple[float, float]:
        """Of a token's forward: (projections, scores and weighted values).

        Keys that an indexer leaves out are computed, and hidden.
        """
        parts = (self.q_proj, self.q_down_proj, self.q_up_proj, self.kv_down_proj, self.kv_up_proj)
        projections = sum(part.operations for part in (*parts, self.out_proj) if part is not None)
        seen = self.core_attention.seen(seq_length)
        scores = 2.0 * seen * self.num_heads * self.query_dim
        core = scores + 2.0 * seen * self.num_heads * self.v_head_dim
        if self.indexer is None:
            return projections, core
        own, choice = self.indexer.operations(seen, scores)
        return projections + own, core + choice

    def kept_bytes(self, sizes: RankSizes, recompute: LayerRecompute) -> int:
        """Narrow vectors (twice where they are normalized), and heads of equal width."""
        heads = self.num_heads // sizes.tensor
        narrow = self.kv_up_proj.inputs + (self.q_up_proj.inputs if self.q_up_proj else 0)
        kept = sizes.rows * sizes.width * narrow * (2 if self.kv_layernorm is not None else 1)
        output = sizes.tokens * sizes.width * heads * self.v_head_dim
        if self.indexer is not None:
            again = recompute.modules & {CORE_ATTENTION, MLA_UP_PROJECTION}
            kept += self.indexer.kept_bytes(sizes, bool(again))
        if MLA_UP_PROJECTION in recompute.modules:
            return kept + output
        width = max(self.query_dim, self.v_head_dim)
        if width > self.v_head_dim:  # the kernel's output is wider than what the projection keeps
            output += sizes.tokens * sizes.width * heads * width
        kept += output + sizes.tokens * sizes.width * 3 * heads * width
        return kept if CORE_ATTENTION in recompute.modules else kept + 4 * sizes.tokens * heads
