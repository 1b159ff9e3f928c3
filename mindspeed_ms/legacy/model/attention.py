# SPDX-License-Identifier: Apache-2.0
"""Self-attention. Legend: S sequence, B batch, H hidden, N query heads, G key/value groups,
R queries per group, D channels of a head, p tensor parallel ranks. N, G per rank unless stated.
"""  # noqa: D205 - the legend belongs to the first paragraph

from __future__ import annotations

import enum
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell
from numpy.typing import NDArray

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.context_parallel import context_parallel, context_parallel_attention
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.recompute import checkpoint
from mindspeed_ms.core.tensor_parallel import mappings
from mindspeed_ms.core.tensor_parallel.random import MODEL_PARALLEL_RNG, get_rng_tracker
from mindspeed_ms.core.tensor_parallel.utils import divide
from mindspeed_ms.legacy.model.enums import AttnMaskType, AttnType, as_mask_type
from mindspeed_ms.legacy.model.from_spec import column_linear, parameter, row_linear
from mindspeed_ms.legacy.model.norm import norm_from_spec
from mindspeed_ms.legacy.model.unserved import refuse_unserved
from mindspeed_ms.models.attention import AttentionSpec
from mindspeed_ms.models.gpt import attention_spec, scores_spec
from mindspeed_ms.models.scores import ScoresSpec, alibi_slopes
from mindspeed_ms.plan.recompute_plan import CORE_ATTENTION, NO_RECOMPUTE, LayerRecompute

_FLOATS = (mstype.float32, mstype.float16, mstype.bfloat16, mstype.float64)

RotaryTables = tuple[Tensor, ...]
"""(cos, sin), each fp32 [S, 1, 1, rotated channels]; then those of layers with a window, where they
rotate by another base."""

Numbers = NDArray[np.float32]

AttentionMask: TypeAlias = Tensor | ops.Documents | None
"""Dense, [B or 1, 1, S, S], [B, S, S] or [S, S]: bool or whole numbers, where True or other than 0
is hidden, or floating numbers that are added to the scores; or the documents of packed
sequences, which stay causal inside; or None. With context parallelism documents number the whole
sequence, and a dense mask has the rows of ``ContextParallel.ring_positions``."""


class CoreAttention(Cell):
    """softmax(scale Q K^T) V for the heads of this rank, with what the layer does to its scores.

    With context parallelism S is this rank's share of the sequence, and the queries see the keys of
    all shares. ``max_logits``, when it is set to an fp32 tensor [N], is raised to the largest score
    of each head (of this rank's queries, or of its heads: see ``context_parallel_attention``).

    Args:
        layer_number: global number of the layer, from 1.
        config: model configuration.
        attn_mask_type: causal masks need no tensor; a dense mask replaces them. The configuration's
            ``attention_mask_type`` full makes causal attention see everything.
        spec: what the layer sees and does to its scores, default the configuration's.
        groups: of this rank, default the current ones.
    """

    def __init__(
        self,
        layer_number: int,
        config: TransformerConfig,
        attn_mask_type: enum.Enum = AttnMaskType.padding,
        *,
        spec: ScoresSpec | None = None,
        groups: ProcessGroups | None = None,
    ) -> None:
        super().__init__()
        self.layer_number = max(1, layer_number)
        spec = spec or scores_spec(config, self.layer_number - 1)
        tensor = (groups or ProcessGroups.current()).tensor
        self.attn_mask_type = as_mask_type(attn_mask_type)
        self.is_causal = (
            self.attn_mask_type in (AttnMaskType.causal, AttnMaskType.padding_causal)
            and config.parallel_config.attention_mask_type != "full"
            and not spec.is_band
        )
        self.context = context_parallel(config.parallel_config)
        self.dropout_rate = config.attention_dropout_rate
        self.max_logits: Tensor | None = None
        self.num_heads = heads = divide(spec.num_heads, tensor.size, "num_attention_heads")
        self.adds_masks = config.adds_masks
        self.batch_first = config.batch_first
        # Of a script. Ranks that share the sequence hold a part of the values, so no mean of all.
        self.fills_masks = config.adds_masks is not None and self.context is None
        self.softmax_offset = self._sinks(spec, tensor, heads)
        self.options = {
            "scale": spec.scale,
            "window": spec.window,
            "softcap": spec.softcap,
            "slopes": _slopes(spec, tensor.rank * heads, heads),
            "storage": _storage(spec),
        }

    @staticmethod
    def _sinks(spec: ScoresSpec, tensor: Group, heads: int) -> Tensor | None:
        """The parameter, zeros that are none, or nothing."""
        for one in spec.parameters():
            return parameter(one, group=tensor)
        return memory.zeros((heads,)) if spec.has_sinks else None

    def construct(
        self, q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor, attention_mask: AttentionMask
    ) -> Tensor:
        """-> [S, B, N * D]; mask: see ``AttentionMask``.

        Heads of a script's own, [B, N, S, D] as the fused kernels have them, are told by the place
        of the number of heads; they give [B, S, N * D] where the layout has the batch first. Where
        both places have that number, it is [S, B, N, D].

        Raises:
            ValueError: neither place has the number of heads.
        """
        if q_SBND.shape[2] != self.num_heads:
            return self._of_batches((q_SBND, k_SBGD, v_SBGD), attention_mask)
        if self.attn_mask_type == AttnMaskType.no_mask:
            attention_mask = None
        documents = attention_mask if isinstance(attention_mask, ops.Documents) else None
        mask = attention_mask if isinstance(attention_mask, Tensor) else None
        mask, bias = (None, None) if mask is None else _hidden_and_added(mask, self.adds_masks)
        arguments = {
            **self.options,
            "sinks": self.softmax_offset,
            "max_logits": self.max_logits,
            "causal": self.is_causal and mask is None and bias is None,
            "mask": mask,
            "bias": bias,
            "documents": documents,
        }
        dropout = self.dropout_rate if self.training else 0.0
        if dropout == 0.0:
            out = self._attend(q_SBND, k_SBGD, v_SBGD, **arguments)
        else:
            with get_rng_tracker().fork(MODEL_PARALLEL_RNG) as generator:
                out = self._attend(
                    q_SBND, k_SBGD, v_SBGD, dropout_p=dropout, generator=generator, **arguments
                )
        if mask is None or not self.fills_masks:
            return out
        return _with_means(out, v_SBGD, mask, self.num_heads)

    def _of_batches(self, heads: tuple[Tensor, ...], attention_mask: AttentionMask) -> Tensor:
        """Attention of [B, N, S, D]."""
        if heads[0].ndim != 4 or heads[0].shape[1] != self.num_heads:
            raise ValueError(
                f"queries have shape {heads[0].shape}, but {self.num_heads} heads must stand in "
                f"the third place ([S, B, N, D]) or in the second ([B, N, S, D])"
            )
        q_SBND, k_SBGD, v_SBGD = (part.permute(2, 0, 1, 3).contiguous() for part in heads)
        out_SBE = self.construct(q_SBND, k_SBGD, v_SBGD, attention_mask)
        return mappings.exchanged(out_SBE) if self.batch_first else out_SBE

    def attend(
        self,
        q_SBND: Tensor,
        k_SBGD: Tensor,
        v_SBGD: Tensor,
        attention_mask: AttentionMask,
        *,
        again: bool,
    ) -> Tensor:
        """A call of the layer, with its inner results made ``again`` in backward or kept."""

        def core(q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor) -> Tensor:
            return self(q_SBND, k_SBGD, v_SBGD, attention_mask)

        return checkpoint(core, q_SBND, k_SBGD, v_SBGD) if again else core(q_SBND, k_SBGD, v_SBGD)

    def attend_cached(
        self, heads: tuple[Tensor, ...], inference_params: InferenceContext
    ) -> Tensor:
        """Attention to the keys of a cache, and to these; see ``InferenceContext.attend``."""
        names = ("scale", "window", "softcap", "slopes")
        options: dict[str, Any] = {name: self.options[name] for name in names}
        return inference_params.attend(
            self.layer_number,
            heads,
            causal=self.is_causal,
            sinks=self.softmax_offset,
            **options,
        )

    def _attend(self, q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor, **arguments: Any) -> Tensor:
        if self.context is None:
            return ops.attention(q_SBND, k_SBGD, v_SBGD, **arguments)
        return context_parallel_attention(q_SBND, k_SBGD, v_SBGD, self.context, **arguments)


class ParallelAttention(Cell):
    """Self-attention with the heads split over the tensor parallel group.

    The rows of ``qkv_proj`` are grouped per key/value group: [R queries, key, value], D rows each.
    With fewer groups than ranks each holds an even part of these rows as well; it gathers what
    they give, takes the key and value of its group, and its own queries.

    Args:
        config: model configuration.
        layer_number: global number of the layer, from 1.
        attention_type: only self-attention.
        attn_mask_type: see ``CoreAttention``.
        spec: sizes and parts, default the configuration's.
        groups: of this rank, default the current ones.
        recompute: parts that are computed again in backward.

    Raises:
        ValueError: head or group counts that do not divide, or cross attention.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attention_type: enum.Enum = AttnType.self_attn,
        attn_mask_type: enum.Enum = AttnMaskType.padding,
        *,
        spec: AttentionSpec | None = None,
        groups: ProcessGroups | None = None,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        refuse_cross_attention(attention_type)
        self.batch_first = spec is None and config.batch_first  # parts of a model never are
        spec = spec or attention_spec(config, layer_number - 1)
        groups = groups or ProcessGroups.current()
        # Megatron builds the output projection first, and weights are drawn in that order.
        self.core_attention = CoreAttention(
            layer_number, config, attn_mask_type, spec=spec.core_attention, groups=groups
        )
        self.out_proj = row_linear(spec.out_proj, config, groups)
        self.qkv_proj = column_linear(
            spec.qkv_proj, config, groups, keeps_gathered=recompute.keeps_gathered
        )
        weight = self.qkv_proj.weight
        assert weight is not None, "a layer of its own allocates one"
        weight.shard = replace(weight.shard, row_blocks=spec.row_blocks)
        self.attends_again = CORE_ATTENTION in recompute.modules
        self.head_dim = spec.head_dim
        self.sharers = max(1, groups.tensor.size // spec.num_groups)  # ranks of a group
        self.num_groups_per_partition = divide(
            spec.num_groups * self.sharers, groups.tensor.size, "num_query_groups"
        )
        self.queries_per_group = divide(
            spec.num_heads, spec.num_groups * self.sharers, "num_attention_heads"
        )
        self.rotary_interleaved = config.rotary_interleaved
        self.rotates, self.tables = spec.rotates, slice(2, 4) if spec.rotates_locally else slice(2)
        self.has_gate, self.length_eps = spec.has_gate, spec.length_eps
        self.limit = spec.limit
        self.q_layernorm = self.k_layernorm = None
        self.normalizes_all_heads, self.group = spec.normalizes_all_heads, groups.tensor
        if spec.q_layernorm is not None and spec.k_layernorm is not None:
            if spec.q_layernorm.heads > 1 and self.sharers > 1:
                raise ValueError(
                    f"qk_layernorm_per_head needs a head of keys for each of {groups.tensor.size} "
                    f"tensor parallel ranks, the model has {spec.num_groups}; use fewer ranks"
                )
            self.q_layernorm = norm_from_spec(spec.q_layernorm, config, groups.tensor)
            self.k_layernorm = norm_from_spec(spec.k_layernorm, config, groups.tensor)

    def construct(
        self,
        hidden_states: Tensor,
        attention_mask: AttentionMask = None,
        encoder_output: None = None,
        inference_params: InferenceContext | None = None,
        rotary_pos_emb: RotaryTables | None = None,
        queries: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """[S, B, H] (sequence parallel: [S/p, B, H]) -> (the same shape, bias not added).

        ``queries``: of the same shape, projected to queries in place of the hidden states.
        """
        refuse_unserved(encoder_output=encoder_output)
        if self.batch_first:
            hidden_states = mappings.exchanged(hidden_states)
        mixed, _ = self.qkv_proj(hidden_states)  # [S, B, G * (R + 2) * D]
        q_SBND, k_SBGD, v_SBGD, gate = self._split(mixed)
        if queries is not None:
            mixed, _ = self.qkv_proj(mappings.exchanged(queries) if self.batch_first else queries)
            q_SBND = self._split(mixed)[0]
        if self.q_layernorm is not None and self.k_layernorm is not None:
            q_SBND = ops.cast(self._normalized(q_SBND, self.q_layernorm), v_SBGD.dtype)
            k_SBGD = ops.cast(self._normalized(k_SBGD, self.k_layernorm), v_SBGD.dtype)
        if self.limit is not None:
            parts = (q_SBND, k_SBGD, v_SBGD)
            q_SBND, k_SBGD, v_SBGD = (ops.clipped(part, self.limit) for part in parts)
        if self.length_eps is not None:
            ones = memory.full((self.head_dim,), 1.0, q_SBND.dtype)
            q_SBND = ops.rms_norm(q_SBND, ones, self.length_eps)
            k_SBGD = ops.rms_norm(k_SBGD, ones, self.length_eps)
        if rotary_pos_emb is not None and self.rotates:
            cos, sin = rotary_pos_emb[self.tables]
            q_SBND = ops.rotary(q_SBND, cos, sin, self.rotary_interleaved)
            k_SBGD = ops.rotary(k_SBGD, cos, sin, self.rotary_interleaved)
        if inference_params is not None:
            context = self.core_attention.attend_cached((q_SBND, k_SBGD, v_SBGD), inference_params)
            return self.out_proj(context if gate is None else ops.sigmoid_gated(context, gate))
        context = self.core_attention.attend(
            q_SBND, k_SBGD, v_SBGD, attention_mask, again=self.attends_again
        )
        if gate is not None:
            context = ops.sigmoid_gated(context, gate)
        output, bias = self.out_proj(context)
        return (mappings.exchanged(output) if self.batch_first else output), bias

    def row_factors(
        self, tops: Numbers, limit: float, alpha: float
    ) -> list[tuple[Parameter, Numbers]]:
        """Factors of the rows of the projection that bring scores above a limit down to it.

        Args:
            tops: [N], the largest score of each head. The heads of a group share their keys, so
                the largest of a group counts for all of it.
            limit: of the scores.
            alpha: power of limit / score that queries take; keys take the rest.

        Source: Megatron-LM ``SelfAttention.clip_qk`` (behaviour).
        """
        groups, width = self.num_groups_per_partition, self.head_dim
        share = shrunk(tops.reshape((groups, -1)).max(axis=1), limit)[:, None]
        queries = self.queries_per_group * width
        rows = np.ones((groups, queries * (2 if self.has_gate else 1) + 2 * width), np.float32)
        rows[:, :queries] = share ** np.float32(alpha)
        rows[:, -2 * width : -width] = share ** np.float32(1.0 - alpha)
        return [(self.qkv_proj.weight, rows.reshape(-1))]

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(q [S, B, N, D], k, v [S, B, G, D], gate [S, B, N * D] or None) of [S, B, ...]."""
        groups, queries = self.num_groups_per_partition, self.queries_per_group
        if self.sharers > 1:
            mixed = self._of_own_heads(mixed)
        if not self.has_gate:
            return *ops.split_qkv(mixed, groups, queries, self.head_dim), None
        both, k_SBGD, v_SBGD = ops.split_qkv(mixed, groups, 2 * queries, self.head_dim)
        length, batch = both.shape[:2]
        width = queries * self.head_dim
        parts = ops.split_columns(both.reshape((length, batch, groups, 2 * width)), (width, width))
        shape = (length, batch, groups * queries, self.head_dim)
        return parts[0].reshape(shape), k_SBGD, v_SBGD, parts[1].reshape((length, batch, -1))

    def _of_own_heads(self, mixed: Tensor) -> Tensor:
        """This rank's columns of all ranks': its queries, its gates, the key and value it shares.

        The gradient of a shared key is the sum of what the queries of all its ranks have for it.
        """
        number, sharer = divmod(self.group.rank, self.sharers)
        own, kinds = self.queries_per_group * self.head_dim, 2 if self.has_gate else 1
        shared = 2 * self.head_dim  # columns of a key and a value
        first = number * (kinds * self.sharers * own + shared)
        starts = [first + (kind * self.sharers + sharer) * own for kind in range(kinds)]
        end = first + kinds * self.sharers * own
        runs = (*((start, start + own) for start in starts), (end, end + shared))
        return mappings.columns_from_tensor_parallel_region(mixed, runs, self.group)

    def _normalized(self, heads: Tensor, norm: Cell) -> Tensor:
        """Queries or keys [S, B, heads, D], each head normalized, or all of the model together."""
        if not self.normalizes_all_heads:
            return norm(heads)
        shape, flat = heads.shape, heads.reshape((*heads.shape[:2], -1))
        whole = norm(mappings.gather_from_tensor_model_parallel_region(flat, self.group))
        own = mappings.scatter_to_tensor_model_parallel_region(whole, self.group)
        return own.reshape(shape)


def shrunk(tops: Numbers, limit: float) -> Numbers:
    """Limit / score of scores above it, else 1."""
    factors = np.ones(tops.shape, np.float32)
    np.divide(np.float32(limit), tops, out=factors, where=tops > limit)
    return factors


def _hidden_and_added(
    mask: Tensor | None, adds: bool | None
) -> tuple[Tensor | None, Tensor | None]:
    """(bool mask, numbers to add to the scores) of a dense mask, each [B or 1, 1, S, S] or None."""
    if mask is None:
        return None, None
    if mask.ndim < 4:
        mask = mask.expand_dims(0) if mask.ndim == 2 else mask
        mask = mask.expand_dims(1)
    if mask.dtype == mstype.bool_:
        return mask, None
    if adds or (adds is None and mask.dtype in _FLOATS):
        return None, memory.in_dtype(mask, mstype.float32)
    return mask != 0, None


def _with_means(out_SBE: Tensor, v_SBGD: Tensor, mask: Tensor, num_heads: int) -> Tensor:
    """Attention where a query that the mask hides from every key gets the mean of all values.

    The engine gives it zeros. The predecessor writes one finite number into hidden scores, so that
    the probabilities of such a query are equal.
    """
    is_blind = mask.asnumpy().all(-1)[:, 0]  # [B or 1, S]
    if not is_blind.any():
        return out_SBE
    _, batch, groups, width = v_SBGD.shape
    means = ops.cast(v_SBGD, mstype.float32).mean(0).expand_dims(2)  # [B, G, 1, D]
    means = means.broadcast_to((batch, groups, num_heads // groups, width)).reshape(1, batch, -1)
    blind_SB1 = Tensor(np.ascontiguousarray(is_blind.T[:, :, None]).astype(np.float32))
    return out_SBE + ops.cast(blind_SB1 * means, out_SBE.dtype)


def _slopes(spec: ScoresSpec, first: int, count: int) -> Numbers | None:
    """Slopes of some of the heads."""
    if not spec.has_slopes:
        return None
    factor = spec.scale if spec.scales_slopes else 1.0
    slopes = np.array(alibi_slopes(spec.num_heads)[first : first + count], np.float32)
    return slopes * np.float32(factor)


def _storage(spec: ScoresSpec) -> ops.ScoreStorage | None:
    if spec.storage is None:
        return None
    dtype = memory.dtype_of(spec.storage)
    return ops.ScoreStorage(dtype, divisor=spec.divisor, weights=spec.rounds_weights)


def refuse_cross_attention(attention_type: enum.Enum) -> None:
    """The attention layers here attend to their own sequence."""
    if attention_type.value != AttnType.self_attn.value:
        raise ValueError(
            f"attention_type is {attention_type}; decoder-only models have self_attn layers"
        )
