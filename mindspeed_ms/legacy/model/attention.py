"""Self-attention. Legend: S sequence, B batch, H hidden, N query heads, G key/value groups,
R queries per group, D channels of a head, p tensor parallel ranks. N, G per rank unless stated.
"""  # noqa: D205 - the legend belongs to the first paragraph

from __future__ import annotations

import enum
import math
from typing import Any, TypeAlias

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.context_parallel import context_parallel, context_parallel_attention
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.recompute import checkpoint
from mindspeed_ms.core.tensor_parallel.random import MODEL_PARALLEL_RNG, get_rng_tracker
from mindspeed_ms.core.tensor_parallel.utils import divide
from mindspeed_ms.legacy.model.enums import AttnMaskType, AttnType, as_mask_type
from mindspeed_ms.legacy.model.from_spec import column_linear, row_linear
from mindspeed_ms.legacy.model.norm import norm_from_spec
from mindspeed_ms.legacy.model.unserved import refuse_unserved
from mindspeed_ms.models.attention import AttentionSpec
from mindspeed_ms.models.gpt import attention_spec
from mindspeed_ms.plan.recompute_plan import CORE_ATTENTION, NO_RECOMPUTE, LayerRecompute

RotaryTables = tuple[Tensor, Tensor]
"""(cos, sin), each fp32 [S, 1, 1, rotated channels]."""

AttentionMask: TypeAlias = Tensor | ops.Documents | None
"""Dense, bool [B or 1, 1, S, S] or [B, S, S] with True = masked; or the documents of packed
sequences, which stay causal inside; or None. With context parallelism documents number the whole
sequence, and a dense mask has the rows of ``ContextParallel.ring_positions``."""


class CoreAttention(Cell):
    """softmax(Q K^T / sqrt(D)) V for the heads of this rank.

    With context parallelism S is this rank's share of the sequence, and the queries see the keys of
    all shares.

    Args:
        layer_number: global number of the layer, from 1.
        config: model configuration.
        attn_mask_type: causal masks need no tensor; a dense mask replaces them. The configuration's
            ``attention_mask_type`` full makes causal attention see everything.

    ``apply_query_key_layer_scaling`` moves a factor of layer_number between the product and the
    softmax to keep fp16 scores in range; scores are held in fp32 here, so it changes nothing.
    """

    def __init__(
        self,
        layer_number: int,
        config: TransformerConfig,
        attn_mask_type: enum.Enum = AttnMaskType.padding,
    ) -> None:
        super().__init__()
        self.layer_number = max(1, layer_number)
        self.attn_mask_type = as_mask_type(attn_mask_type)
        self.is_causal = (
            self.attn_mask_type in (AttnMaskType.causal, AttnMaskType.padding_causal)
            and config.parallel_config.attention_mask_type != "full"
        )
        self.context = context_parallel(config.parallel_config)
        self.dropout_rate = config.attention_dropout_rate
        assert config.kv_channels is not None, "filled in by the configuration"
        self.scale = 1.0 / math.sqrt(config.kv_channels)

    def construct(
        self, q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor, attention_mask: AttentionMask
    ) -> Tensor:
        """-> [S, B, N * D]; mask: see ``AttentionMask``."""
        if self.attn_mask_type == AttnMaskType.no_mask:
            attention_mask = None
        documents = attention_mask if isinstance(attention_mask, ops.Documents) else None
        mask = attention_mask if isinstance(attention_mask, Tensor) else None
        if mask is not None and mask.ndim == 3:
            mask = mask.expand_dims(1)  # [B, 1, S, S]
        arguments = {
            "scale": self.scale,
            "causal": self.is_causal and mask is None,
            "mask": mask,
            "documents": documents,
        }
        dropout = self.dropout_rate if self.training else 0.0
        if dropout == 0.0:
            return self._attend(q_SBND, k_SBGD, v_SBGD, **arguments)
        with get_rng_tracker().fork(MODEL_PARALLEL_RNG) as generator:
            return self._attend(
                q_SBND, k_SBGD, v_SBGD, dropout_p=dropout, generator=generator, **arguments
            )

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

    def _attend(self, q_SBND: Tensor, k_SBGD: Tensor, v_SBGD: Tensor, **arguments: Any) -> Tensor:
        if self.context is None:
            return ops.attention(q_SBND, k_SBGD, v_SBGD, **arguments)
        return context_parallel_attention(q_SBND, k_SBGD, v_SBGD, self.context, **arguments)


class ParallelAttention(Cell):
    """Self-attention with the heads split over the tensor parallel group.

    The rows of ``qkv_proj`` are grouped per key/value group: [R queries, key, value], D rows each.

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
        spec = spec or attention_spec(config)
        groups = groups or ProcessGroups.current()
        # Megatron builds the output projection first, and weights are drawn in that order.
        self.core_attention = CoreAttention(layer_number, config, attn_mask_type)
        self.out_proj = row_linear(spec.out_proj, config, groups)
        self.qkv_proj = column_linear(
            spec.qkv_proj, config, groups, keeps_gathered=recompute.keeps_gathered
        )
        self.attends_again = CORE_ATTENTION in recompute.modules
        self.head_dim = spec.head_dim
        self.num_groups_per_partition = divide(
            spec.num_groups, groups.tensor.size, "num_query_groups"
        )
        self.queries_per_group = divide(spec.num_heads, spec.num_groups, "num_attention_heads")
        self.rotary_interleaved = config.rotary_interleaved
        self.q_layernorm = self.k_layernorm = None
        if spec.q_layernorm is not None and spec.k_layernorm is not None:
            self.q_layernorm = norm_from_spec(spec.q_layernorm, config)
            self.k_layernorm = norm_from_spec(spec.k_layernorm, config)

    def construct(
        self,
        hidden_states: Tensor,
        attention_mask: AttentionMask = None,
        encoder_output: None = None,
        inference_params: None = None,
        rotary_pos_emb: RotaryTables | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """[S, B, H] (sequence parallel: [S/p, B, H]) -> (the same shape, bias not added)."""
        refuse_unserved(encoder_output=encoder_output, inference_params=inference_params)
        mixed, _ = self.qkv_proj(hidden_states)  # [S, B, G * (R + 2) * D]
        q_SBND, k_SBGD, v_SBGD = ops.split_qkv(
            mixed, self.num_groups_per_partition, self.queries_per_group, self.head_dim
        )
        if self.q_layernorm is not None and self.k_layernorm is not None:
            q_SBND = ops.cast(self.q_layernorm(q_SBND), v_SBGD.dtype)
            k_SBGD = ops.cast(self.k_layernorm(k_SBGD), v_SBGD.dtype)
        if rotary_pos_emb is not None:
            cos, sin = rotary_pos_emb
            q_SBND = ops.rotary(q_SBND, cos, sin, self.rotary_interleaved)
            k_SBGD = ops.rotary(k_SBGD, cos, sin, self.rotary_interleaved)
        context = self.core_attention.attend(
            q_SBND, k_SBGD, v_SBGD, attention_mask, again=self.attends_again
        )
        return self.out_proj(context)


def refuse_cross_attention(attention_type: enum.Enum) -> None:
    """The attention layers here attend to their own sequence."""
    if attention_type.value != AttnType.self_attn.value:
        raise ValueError(
            f"attention_type is {attention_type}; decoder-only models have self_attn layers"
        )
