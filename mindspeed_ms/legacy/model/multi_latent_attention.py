# SPDX-License-Identifier: Apache-2.0
"""Attention whose queries, keys and values come from narrow vectors (DeepSeek-AI, 2024).

Legend: S sequence, B batch, H hidden, N heads of this rank, D channels of a query or key head, of
which R are rotated, V channels of a value head, p tensor parallel ranks.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.reshaping import reshaped
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.inference.kv_cache import KVCache
from mindspeed_ms.core.parameter import make_ready
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.recompute import checkpoint
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.core.tensor_parallel.utils import divide
from mindspeed_ms.legacy.model.attention import (
    AttentionMask,
    CoreAttention,
    Numbers,
    RotaryTables,
    refuse_cross_attention,
    shrunk,
)
from mindspeed_ms.legacy.model.enums import AttnMaskType, AttnType
from mindspeed_ms.legacy.model.from_spec import column_linear, row_linear, whole_linear
from mindspeed_ms.legacy.model.lightning_indexer import Choices, LightningIndexer
from mindspeed_ms.legacy.model.norm import norm_from_spec
from mindspeed_ms.legacy.model.rotary_pos_embedding import RotaryEmbedding
from mindspeed_ms.legacy.model.unserved import refuse_unserved
from mindspeed_ms.models.attention import LatentAttentionSpec
from mindspeed_ms.models.gpt import latent_attention_spec
from mindspeed_ms.models.rotation import yarn_growth
from mindspeed_ms.plan.recompute_plan import (
    CORE_ATTENTION,
    MLA_UP_PROJECTION,
    NO_RECOMPUTE,
    LayerRecompute,
)


class YarnRotaryEmbedding(RotaryEmbedding):
    """Rotary tables for sequences longer than those of the first training.

    Channels that turn often keep their angles, channels that turn rarely are slowed down by the
    scaling factor, those in between are mixed. The tables are multiplied by the growth of the
    rotated channels.

    Args:
        channels: R.
        rotary_base: base of the angular frequencies.
        config: factor, ranges and growth.
        original_length: tokens per sequence of the first training.
        dtype: type whose values the tables hold.

    Source: Peng et al., 2023; Megatron-LM ``YarnRotaryEmbedding`` (rounding of the ranges).
    """

    def __init__(
        self,
        channels: int,
        rotary_base: float,
        config: LatentAttentionConfig,
        original_length: int,
        dtype: str | mstype.Type = "float32",
    ) -> None:
        interleaved = config.rotary_interleaved
        super().__init__(
            channels, rotary_interleaved=interleaved, rotary_base=rotary_base, dtype=dtype
        )

        def channel_turning(turns: float) -> float:
            """The (real) pair of channels that turns so often over the original length."""
            wave = original_length / (turns * 2.0 * math.pi)
            return channels * math.log(wave) / (2.0 * math.log(rotary_base))

        low = max(math.floor(channel_turning(config.beta_fast)), 0)
        high = min(math.ceil(channel_turning(config.beta_slow)), channels - 1)
        width = (high - low) if high != low else 1e-3
        pairs = np.arange(channels // 2, dtype=np.float32)
        slowed = np.clip((pairs - np.float32(low)) / np.float32(width), 0.0, 1.0)
        plain = self._inverse_frequency
        slow = plain / np.float32(config.rotary_scaling_factor)
        self._inverse_frequency = slow * slowed + plain * (np.float32(1.0) - slowed)
        self._growth = np.float32(
            yarn_growth(config.rotary_scaling_factor, config.mscale)
            / yarn_growth(config.rotary_scaling_factor, config.mscale_all_dim)
        )


def latent_rotary(config: TransformerConfig) -> RotaryEmbedding:
    """Rotary tables of multi-latent attention, whose neighbouring channels usually are pairs.

    Megatron sorts even and odd channels apart before it rotates halves; queries and keys alike, so
    the scores are the same.
    """
    latent = config.mla_config
    dtype = "float32" if config.apply_rope_fusion else config.compute_dtype
    if latent.rope_type == "rope" or config.rope_scaling.is_on:
        return RotaryEmbedding(
            latent.qk_pos_emb_head_dim,
            config.rotary_percent,
            rotary_interleaved=latent.rotary_interleaved,
            rotary_base=config.rotary_base,
            dtype=dtype,
            stretching=config.rope_scaling,
            longest=config.max_position_embeddings or config.seq_length,
        )
    length = latent.original_max_position_embeddings or config.max_position_embeddings
    assert length is not None, "max_position_embeddings is filled when the section is built"
    return YarnRotaryEmbedding(
        latent.qk_pos_emb_head_dim, config.rotary_base, latent, length, dtype
    )


class MultiLatentAttention(Cell):
    """Self-attention with heads split over the tensor parallel group, from vectors that are not.

    The narrow projections are whole on every rank and see this rank's part of the sequence. The
    rotated channels of the keys are one vector per token, shared by all heads.

    Args:
        config: model configuration with its ``mla_config``.
        layer_number: global number of the layer, from 1.
        attention_type: only self-attention.
        attn_mask_type: see ``CoreAttention``.
        spec: sizes and parts, default the configuration's.
        groups: of this rank, default the current ones.
        recompute: parts that are computed again in backward; ``mla_up_proj`` repeats the attention
            core, too.

    Raises:
        ValueError: a number of heads that does not divide, or cross attention.

    Source: Megatron-LM ``MLASelfAttention`` (order of operations, norms with ``qk_layernorm``).
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attention_type: enum.Enum = AttnType.self_attn,
        attn_mask_type: enum.Enum = AttnMaskType.padding,
        *,
        spec: LatentAttentionSpec | None = None,
        groups: ProcessGroups | None = None,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        refuse_cross_attention(attention_type)
        spec = spec or latent_attention_spec(config, layer_number - 1)
        groups = groups or ProcessGroups.current()
        latent = config.mla_config
        self.latent = latent
        self.core_attention = CoreAttention(
            layer_number, config, attn_mask_type, spec=spec.core_attention, groups=groups
        )
        self.indexer, self.chooser, self.choices = None, spec.chooser, Choices()
        self.scale = spec.core_attention.scale
        if spec.indexer is not None:
            self.indexer = LightningIndexer(
                config,
                layer_number,
                spec=spec.indexer,
                scale=spec.core_attention.scale,
                groups=groups,
            )
        if spec.indexer is not None or spec.chooser is not None:
            self.core_attention.dropout_rate = 0.0  # Megatron's sparse attention has none
        # Megatron builds the output projection first, and weights are drawn in that order.
        self.out_proj = row_linear(spec.out_proj, config, groups)
        self.q_proj = self.q_down_proj = self.q_up_proj = None
        if spec.q_proj is not None:
            self.q_proj = column_linear(spec.q_proj, config, groups)
        if spec.q_down_proj is not None and spec.q_up_proj is not None:
            self.q_down_proj = whole_linear(spec.q_down_proj, config)
            self.q_up_proj = column_linear(spec.q_up_proj, config, groups)
        self.kv_down_proj = whole_linear(spec.kv_down_proj, config)
        self.kv_up_proj = column_linear(spec.kv_up_proj, config, groups)
        self.q_layernorm = self.kv_layernorm = None
        if spec.q_layernorm is not None:
            self.q_layernorm = norm_from_spec(spec.q_layernorm, config)
        if spec.kv_layernorm is not None:
            self.kv_layernorm = norm_from_spec(spec.kv_layernorm, config)
        self.group = groups.tensor
        self.sequence_parallel = self.kv_up_proj.plan.sequence_parallel
        self.num_heads_per_partition = divide(
            spec.num_heads, groups.tensor.size, "num_attention_heads"
        )
        self.attends_again = CORE_ATTENTION in recompute.modules
        self.projects_again = MLA_UP_PROJECTION in recompute.modules

    def construct(
        self,
        hidden_states: Tensor,
        attention_mask: AttentionMask = None,
        encoder_output: None = None,
        inference_params: InferenceContext | None = None,
        rotary_pos_emb: RotaryTables | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """[S, B, H] (sequence parallel: [S/p, B, H]) -> (the same shape, bias not added)."""
        refuse_unserved(encoder_output=encoder_output)
        narrow_q, hidden_states = ops.branch(hidden_states)
        if self.q_down_proj is not None:
            narrow_q = self.q_down_proj(narrow_q)
            if self.q_layernorm is not None:
                narrow_q = self.q_layernorm(narrow_q)
        index: tuple[Tensor, ...] = ()
        if self.indexer is not None:
            index = self.indexer(hidden_states, narrow_q, rotary_pos_emb)
        narrow_kv, turned = ops.split_columns(
            self.kv_down_proj(hidden_states),
            (self.latent.kv_lora_rank, self.latent.qk_pos_emb_head_dim),
        )
        if self.kv_layernorm is not None:
            narrow_kv = self.kv_layernorm(narrow_kv)
        if self.sequence_parallel:
            turned = mappings.gather_from_sequence_parallel_region(turned, group=self.group)
        else:  # each rank's heads give a part of its gradient
            turned = mappings.copy_to_tensor_model_parallel_region(turned, self.group)

        def attend(narrow_q: Tensor, narrow_kv: Tensor, turned: Tensor, *index: Tensor) -> Tensor:
            heads = self._heads(narrow_q, narrow_kv, turned, rotary_pos_emb)
            return self._attend(*heads, attention_mask, index)

        if inference_params is not None:
            if self.sequence_parallel:
                narrow_kv = mappings.gather_from_sequence_parallel_region(
                    narrow_kv, group=self.group
                )
            queries = self._queries(narrow_q, rotary_pos_emb)
            latents = self._latents(narrow_kv, turned, rotary_pos_emb)
            context = self._attend_cached(queries, latents, index, inference_params)
        elif self.projects_again:
            context = checkpoint(attend, narrow_q, narrow_kv, turned, *index)
        else:
            context = attend(narrow_q, narrow_kv, turned, *index)
        return self.out_proj(context)

    def _attend_cached(
        self,
        queries: tuple[Tensor, Tensor],
        latents: Tensor,
        index: tuple[Tensor, ...],
        inference_params: InferenceContext,
    ) -> Tensor:
        """Attention to narrow vectors, which alone a cache keeps, [T, 1, N * V].

        What would make keys of them is applied to the queries, and what would make values, to the
        result: q (W c) = (q W) c. The rotated channels at the end of a value are thrown away.

        Source: DeepSeek-AI, 2024, DeepSeek-V2, section 2.1.2 and appendix C (absorbed matrices).
        """
        core, heads = self.core_attention, self.num_heads_per_partition
        rank = self.latent.kv_lora_rank
        keys, values = self._up_matrices(inference_params.cache, latents.dtype)
        plain, rotated = queries
        tokens = plain.shape[0]
        by_head = memory.permuted(plain, (2, 0, 1, 3)).view((heads * tokens, plain.shape[-1]))
        by_head = ops.grouped_linear_dgrad(by_head, keys, [tokens] * heads)
        narrow = memory.permuted(by_head.view((heads, tokens, 1, rank)), (1, 2, 0, 3))
        pair = (ops.join_columns((narrow, rotated)), latents)
        if self.indexer is not None:
            hidden = self.indexer.choose_cached(core, index, inference_params)
        elif self.chooser is not None:
            hidden = inference_params.chosen[self.chooser]
        else:
            hidden = None
        if hidden is None:
            seen = core.attend_cached(pair, inference_params)
        else:
            seen = inference_params.attend_chosen(core.layer_number, pair, hidden, self.scale)
        parts = seen.view((tokens, heads, latents.shape[-1]))
        narrow, _ = ops.split_columns(parts, (rank, latents.shape[-1] - rank))
        by_head = memory.permuted(narrow, (1, 0, 2)).view((heads * tokens, rank))
        by_head = ops.grouped_linear_forward(by_head, values, [tokens] * heads)
        wide = memory.permuted(by_head.view((heads, tokens, -1)), (1, 0, 2))
        return wide.view((tokens, 1, -1))

    def _up_matrices(
        self, cache: KVCache, dtype: mstype.Type
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The matrices that make keys [D - R, rank] and values [V, rank], one of each per head."""
        number, latent = self.core_attention.layer_number, self.latent
        found = cache.derived.get(number)
        if found is None:
            parts, first = [], 0
            matrix = self._up_matrix(dtype)
            flat, rank = matrix.view((-1,)), latent.kv_lora_rank
            for width in (latent.qk_head_dim, latent.v_head_dim) * self.num_heads_per_partition:
                parts.append(memory.view_of(flat, first * rank, (width, rank)))
                first += width
            found = (parts[::2], parts[1::2])
            if getattr(self.kv_up_proj.weight, "before_use", None) is None:
                cache.derived[number] = found
        return found[0], found[1]

    def _up_matrix(self, dtype: mstype.Type) -> Tensor:
        """[N (D - R + V), rank], with what adapters add."""
        if not hasattr(self.kv_up_proj, "adapters"):
            return ops.cast(make_ready(self.kv_up_proj.weight, dtype), dtype)
        rank, ranks = self.latent.kv_lora_rank, self.group.size if self.sequence_parallel else 1
        rows = -(-rank // ranks)  # of a matrix of ones, of which each rank gives its part
        own = np.eye(rows * ranks, rank, dtype=np.float32)[self.group.rank % ranks * rows :][:rows]
        columns, _ = self.kv_up_proj(ops.cast(memory.from_numpy(own[:, None].copy()), dtype))
        return memory.permuted(columns.view((rows * ranks, -1))[:rank], (1, 0))

    def row_factors(
        self, tops: Numbers, limit: float, alpha: float
    ) -> list[tuple[Parameter, Numbers]]:
        """As ``ParallelAttention.row_factors``; rotated keys are shared by the heads and stay.

        Source: Megatron-LM ``MLASelfAttention.clip_qk`` (behaviour).
        """
        latent, heads = self.latent, self.num_heads_per_partition
        share = shrunk(tops, limit)[:, None]
        queries = np.ones((heads, latent.query_dim), np.float32) * share
        queries[:, : latent.qk_head_dim] = share ** np.float32(alpha)
        keys = np.ones((heads, latent.qk_head_dim + latent.v_head_dim), np.float32)
        keys[:, : latent.qk_head_dim] = share ** np.float32(1.0 - alpha)
        up = self.q_proj if self.q_up_proj is None else self.q_up_proj
        assert up is not None, "queries have a projection of one kind"
        return [(up.weight, queries.reshape(-1)), (self.kv_up_proj.weight, keys.reshape(-1))]

    def _queries(
        self, narrow_q: Tensor, rotary_pos_emb: RotaryTables | None
    ) -> tuple[Tensor, Tensor]:
        """Channels that are not rotated [S, B, N, D - R], and those that are [S, B, N, R]."""
        latent = self.latent
        up = self.q_proj if self.q_up_proj is None else self.q_up_proj
        assert up is not None, "queries have a projection of one kind"
        mixed, _ = up(narrow_q)
        shape = (*mixed.shape[:2], self.num_heads_per_partition, latent.query_dim)
        plain, rotated = ops.split_columns(
            reshaped(mixed, shape), (latent.qk_head_dim, latent.qk_pos_emb_head_dim)
        )
        return plain, self._turned(rotated, rotary_pos_emb)

    def _latents(
        self, narrow_kv: Tensor, turned: Tensor, rotary_pos_emb: RotaryTables | None
    ) -> Tensor:
        """What a cache keeps of each token, [S, B, 1, rank + R]."""
        place = (*turned.shape[:2], 1, -1)
        narrow, own = reshaped(narrow_kv, place), reshaped(turned, place)
        return ops.join_columns((narrow, self._turned(own, rotary_pos_emb)))

    def _turned(self, x: Tensor, rotary_pos_emb: RotaryTables | None) -> Tensor:
        """Channels [S, B, N, R], rotated if there are tables."""
        if rotary_pos_emb is None:
            return x
        cos, sin, *_ = rotary_pos_emb
        return ops.rotary(x, cos, sin, self.latent.rotary_interleaved)

    def _heads(
        self,
        narrow_q: Tensor,
        narrow_kv: Tensor,
        turned: Tensor,
        rotary_pos_emb: RotaryTables | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [S, B, N, D], values [S, B, N, V]."""
        latent, heads = self.latent, self.num_heads_per_partition
        q_SBND = ops.join_columns(self._queries(narrow_q, rotary_pos_emb))
        mixed, _ = self.kv_up_proj(narrow_kv)
        sequence, batch = mixed.shape[:2]
        kv_SBNE = reshaped(mixed, (sequence, batch, heads, latent.qk_head_dim + latent.v_head_dim))
        k_SBND, v_SBNV = ops.split_columns(kv_SBNE, (latent.qk_head_dim, latent.v_head_dim))
        turned_SB1R = reshaped(turned, (sequence, batch, 1, latent.qk_pos_emb_head_dim))
        turned_SB1R = self._turned(turned_SB1R, rotary_pos_emb)
        return q_SBND, ops.join_columns((k_SBND, turned_SB1R)), v_SBNV

    def _attend(
        self,
        q_SBND: Tensor,
        k_SBND: Tensor,
        v_SBNV: Tensor,
        attention_mask: AttentionMask,
        index: tuple[Tensor, ...],
    ) -> Tensor:
        """-> [S, B, N * V]. The kernels want equal heads: zeros fill the narrower ones."""
        query_dim, value_dim = q_SBND.shape[-1], v_SBNV.shape[-1]
        if value_dim < query_dim:
            v_SBNV = ops.join_columns((v_SBNV,), query_dim - value_dim)
        elif value_dim > query_dim:
            q_SBND = ops.join_columns((q_SBND,), value_dim - query_dim)
            k_SBND = ops.join_columns((k_SBND,), value_dim - query_dim)
        again = self.attends_again and not self.projects_again
        core, choices = self.core_attention, self.choices.current
        if self.indexer is None:
            mask = attention_mask if self.chooser is None else choices[self.chooser]
            context = core.attend(q_SBND, k_SBND, v_SBNV, mask, again=again)
        else:
            attend = partial(self.indexer.attend, core, attention_mask, choices)
            inputs = (q_SBND, k_SBND, v_SBNV, *index)
            context = checkpoint(attend, *inputs) if again else attend(*inputs)
        if value_dim >= query_dim:
            return context
        shape = (*context.shape[:2], self.num_heads_per_partition, query_dim)
        values, _ = ops.split_columns(context.reshape(shape), (value_dim, query_dim - value_dim))
        return values.reshape((*context.shape[:2], self.num_heads_per_partition * value_dim))
