# SPDX-License-Identifier: Apache-2.0
"""The lightning indexer of sparse attention (DeepSeek-AI, 2025), which chooses keys.

Legend: h hidden, r width of the vector that queries are made from, H heads of width D; S tokens of
a sequence, b micro-batch, t tensor parallel ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mindspeed_ms.models.part import Child, Composite, LinearSpec, NormSpec
from mindspeed_ms.models.sizes import RankSizes


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexerSpec(Composite):
    """Queries [r -> H D], one key [h -> D] with a norm, and weights of the heads [h -> H].

    Every rank of a tensor parallel group holds all of it.

    Source: Megatron-LM ``DSAIndexer`` (names).
    """

    num_heads: int
    head_dim: int
    rope_dim: int
    """Rotated channels."""
    rotates: str
    """Which; see ``dsa_indexer_rope``."""
    topk: int
    num_keys: int
    """Tokens of a whole sequence."""
    rectified: bool
    loss_coeff: float
    has_sparse_loss: bool
    wq_b: LinearSpec
    wk: LinearSpec
    k_norm: NormSpec
    weights_proj: LinearSpec

    def children(self) -> Iterator[Child]:
        """In the order of construction."""
        yield Child("wq_b", "linear_wq_b", self.wq_b)
        yield Child("wk", "linear_wk", self.wk)
        yield Child("k_norm", "k_norm", self.k_norm)
        yield Child("weights_proj", "linear_weights_proj", self.weights_proj)

    def operations(self, seq_length: int, scores: float) -> tuple[float, float]:
        """Of a token's forward: (projections, scores), in float operations.

        Args:
            seq_length: keys.
            scores: operations of the attention's own scores, which the loss computes again.
        """
        projections = sum(one.operations for one in (self.wq_b, self.wk, self.weights_proj))
        products = 2.0 * seq_length * self.num_heads * (self.head_dim + 1)
        return projections, products + (scores if self.loss_coeff else 0.0)

    def kept_bytes(self, sizes: RankSizes, is_repeated: bool) -> int:
        """Queries, keys and weights; and for each pair of tokens the mask, score and share of it.

        Args:
            sizes: of a micro-batch.
            is_repeated: the core of attention is computed again in backward.
        """
        width = self.num_heads * (self.head_dim + 1) + 2 * self.head_dim
        kept = sizes.tokens * sizes.width * width
        if is_repeated:
            return kept
        return kept + sizes.tokens * self.num_keys * (9 if self.loss_coeff else 1)
