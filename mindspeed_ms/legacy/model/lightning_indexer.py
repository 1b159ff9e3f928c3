# SPDX-License-Identifier: Apache-2.0
"""Sparse attention whose keys a lightning indexer chooses (DeepSeek-AI, 2025).

Legend: S sequence, s tokens of a context parallel rank, B batch, h hidden, r width of the vector
that queries are made from, H heads of the indexer of width D, R rotated channels, N heads of this
rank's attention of width E, p tensor parallel ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from mindspore import Tensor, mint
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import aux_losses
from mindspeed_ms.core.context_parallel import context_parallel
from mindspeed_ms.core.context_parallel.whole import whole_sequence
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.legacy.model.attention import AttentionMask, CoreAttention, RotaryTables
from mindspeed_ms.legacy.model.from_spec import whole_linear
from mindspeed_ms.legacy.model.norm import norm_from_spec
from mindspeed_ms.models.indexer import IndexerSpec

INDEXER_LOSS = "indexer loss"
"""Name of the loss in the log, Megatron's."""

Index = tuple[Tensor, Tensor, Tensor]
"""Queries [s, B, H, D], keys [s, B, D] and weights of the heads [s, B, H]."""


@dataclass(slots=True)
class Choices:
    """What the indexers of a stack chose in a forward, for layers that see the same keys.

    Backward may repeat parts of several forwards in any order, so each forward has a dictionary of
    its own, which whoever repeats a part of it puts here again.
    """

    current: dict[int, Tensor] = field(default_factory=dict)
    """Number of a layer, from 1 -> mask that its attention took."""


class LightningIndexer(Cell):
    """Scores every key for every query with a few narrow heads; attention sees the best.

    Nothing flows back from it into the model: it learns from its own loss alone, the divergence of
    its scores from what the heads of the attention look at together.

    Args:
        config: model configuration.
        layer_number: global number of the layer, from 1.
        spec: sizes and parts.
        scale: of the scores of attention.
        groups: of this rank.

    Parallelism: each rank of a tensor parallel group scores all tokens of its context parallel
        rank; what heads look at is summed over them. With context parallelism keys are gathered.

    Source: Megatron-LM ``DSAIndexer`` and ``DSAttention`` (order of operations). Deliberate
        differences: of equal scores the earlier key is chosen; queries and keys are not rotated by
        a Hadamard matrix, which their products do not notice.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        *,
        spec: IndexerSpec,
        scale: float,
        groups: ProcessGroups,
    ) -> None:
        super().__init__()
        self.layer_number, self.sizes, self.scale = layer_number, spec, scale
        self.group = groups.tensor
        self.wq_b = whole_linear(spec.wq_b, config)
        self.wk = whole_linear(spec.wk, config)
        self.k_norm = norm_from_spec(spec.k_norm, config)
        self.weights_proj = whole_linear(spec.weights_proj, config)
        self.sequence_parallel = config.parallel_config.sequence_parallel
        self.context = context_parallel(config.parallel_config)

    def construct(
        self, hidden_states: Tensor, narrow_q: Tensor, rotary_pos_emb: RotaryTables | None
    ) -> Index:
        """[s, B, h], [s, B, r] (sequence parallel: s/p) -> queries, keys, weights of all s."""
        hidden_states, narrow_q = autograd.detach(hidden_states), autograd.detach(narrow_q)
        sizes = self.sizes
        q = self._whole(self.wq_b(narrow_q))
        k = self._whole(ops.cast(self.k_norm(self.wk(hidden_states)), q.dtype))
        weights = self._whole(self.weights_proj(hidden_states))
        place = q.shape[:2]
        q = self._rotated(q.reshape((*place, sizes.num_heads, sizes.head_dim)), rotary_pos_emb)
        k = self._rotated(k.reshape((*place, 1, sizes.head_dim)), rotary_pos_emb)
        factor = (sizes.num_heads * sizes.head_dim) ** -0.5
        return q, k.reshape((*place, sizes.head_dim)), ops.scaled(weights, factor)

    def choose_cached(
        self, core: CoreAttention, index: tuple[Tensor, ...], inference_params: InferenceContext
    ) -> Tensor:
        """What new tokens do not see of a cache; see ``InferenceContext.choose``."""
        q, k, weights = index
        sizes = self.sizes
        return inference_params.choose(
            self.layer_number,
            (q, k, weights),
            causal=core.is_causal,
            topk=sizes.topk,
            rectified=sizes.rectified,
        )

    def _whole(self, x: Tensor) -> Tensor:
        """Every rank of the group computes the same with all tokens, so none gives a part."""
        if not self.sequence_parallel:
            return x
        return mappings.gather_from_sequence_parallel_region(x, False, self.group)

    def _rotated(self, x: Tensor, rotary_pos_emb: RotaryTables | None) -> Tensor:
        if rotary_pos_emb is None:
            return x
        cos, sin = rotary_pos_emb[:2]
        rotated, plain = self.sizes.rope_dim, self.sizes.head_dim - self.sizes.rope_dim
        if self.sizes.rotates == "last":
            parts = ops.split_columns(x, (plain, rotated)) if plain else (None, x)
            turned = ops.rotary(parts[1], cos, sin, True)
            return ops.join_columns((parts[0], turned)) if plain else turned
        is_paired = self.sizes.rotates == "first_interleaved"
        if not is_paired:  # the tables hold every angle twice, side by side
            cos, sin = (mint.cat((t[..., ::2], t[..., ::2]), -1) for t in (cos, sin))
        first, rest = ops.split_columns(x, (rotated, plain)) if plain else (x, None)
        turned = ops.rotary(first, cos, sin, is_paired)
        return ops.join_columns((turned, rest)) if plain else turned

    def attend(
        self,
        core: CoreAttention,
        attention_mask: AttentionMask,
        choices: dict[int, Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *index: Tensor,
    ) -> Tensor:
        """Attention to the chosen keys: q, k, v [s, B, N, E] -> [s, B, N * E].

        In training the loss of the indexer is attached to the result. ``index`` is what a call of
        this layer returned. What is hidden is left in ``choices`` under the number of the layer.

        Raises:
            ValueError: a dense mask.
        """
        sizes = self.sizes
        hidden = self._hidden(q.shape[0], core.is_causal, attention_mask)
        scores = ops.index_scores(index[0], self._all_keys(index[1]), index[2], sizes.rectified)
        chosen = ops.hidden_but_top(autograd.detach(scores), hidden, sizes.topk)
        choices[self.layer_number] = self._of_ring(chosen)
        context = core(q, k, v, choices[self.layer_number])
        if not (self.training and autograd.is_grad_enabled() and sizes.loss_coeff):
            return context
        if sizes.has_sparse_loss:
            hidden = chosen
        keys = self._all_keys(autograd.detach(k))
        shares = ops.attention_share(autograd.detach(q), keys, hidden, self.scale)
        if self.group.size > 1:
            comm.all_reduce(shares, group=self.group)
        rows = keys.shape[0] * keys.shape[1]
        loss = ops.scaled(ops.index_loss(scores, shares, hidden, rows), sizes.loss_coeff)
        own = ops.scaled(autograd.detach(loss), 1.0 / self.group.size)
        aux_losses.record(INDEXER_LOSS, self.layer_number, own)
        return aux_losses.attach(context, loss)

    def _all_keys(self, x: Tensor) -> Tensor:
        return x if self.context is None else whole_sequence(x, self.context)

    def _hidden(self, length: int, is_causal: bool, mask: AttentionMask) -> Tensor:
        """Keys that the tokens of this rank do not see: bool [B or 1, 1, s, S]."""
        if isinstance(mask, Tensor):
            raise ValueError(
                f"layer {self.layer_number} has sparse attention, which is not done with dense "
                "masks; leave out --create-attention-mask-in-dataloader, packed samples need none"
            )
        places, keys = np.arange(length), length
        if self.context is not None:
            keys = length * self.context.size
            places = self.context.positions(keys)
        hidden = np.zeros((1, length, keys), np.bool_)
        if is_causal:
            hidden |= np.arange(keys) > places[:, None]
        if mask is not None:
            hidden = hidden | (mask.queries[:, places, None] != mask.keys[:, None])
        return memory.from_numpy(np.ascontiguousarray(hidden[:, None]))

    def _of_ring(self, chosen: Tensor) -> Tensor:
        """The rows of the mask that attention wants, of the tokens that the ring holds here."""
        context = self.context
        if context is None or context.ulysses.size == 1:
            return chosen
        rows = memory.from_numpy(memory.as_numpy(chosen)[:, 0].swapaxes(0, 1).astype(np.float16))
        every = memory.as_numpy(whole_sequence(rows, context)) != 0
        own = every[context.ring_positions(len(every))].swapaxes(0, 1)
        return memory.from_numpy(np.ascontiguousarray(own[:, None]))
