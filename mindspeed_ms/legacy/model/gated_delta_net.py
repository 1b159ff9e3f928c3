# SPDX-License-Identifier: Apache-2.0
"""Linear attention with a gated delta rule (Yang et al., 2024), as in Qwen3-Next.

Legend: S sequence, B batch, h hidden, K key heads of width c, V value heads of width d, p tensor
parallel ranks. K and V per rank.
"""

from __future__ import annotations

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core.context_parallel import context_parallel
from mindspeed_ms.core.context_parallel.whole import own_tokens, whole_sequence
from mindspeed_ms.core.inference.context import InferenceContext
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.recompute import checkpoint
from mindspeed_ms.core.tensor_parallel.utils import divide
from mindspeed_ms.legacy.model.attention import AttentionMask, RotaryTables
from mindspeed_ms.legacy.model.from_spec import column_linear, parameter, row_linear
from mindspeed_ms.legacy.model.norm import norm_from_spec
from mindspeed_ms.legacy.model.unserved import refuse_unserved
from mindspeed_ms.models.linear_attention import GatedDeltaSpec
from mindspeed_ms.plan.recompute_plan import CORE_ATTENTION, NO_RECOMPUTE, LayerRecompute


class CausalConvolution(Cell):
    """The weight of a convolution of single channels, under the name Megatron has for it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def construct(self, x: Tensor) -> Tensor:
        """[S, B, C] -> [S, B, C], behind silu."""
        return ops.causal_conv_silu(x, self.weight)


class GatedDeltaNet(Cell):
    """Projection, convolution, states, a gated norm, projection; heads are split over the ranks.

    With context parallelism every rank computes the states of whole sequences.

    Args:
        config: model configuration.
        layer_number: global number of the layer, from 1.
        spec: sizes and parts.
        groups: of this rank.
        recompute: parts that are computed again in backward.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        *,
        spec: GatedDeltaSpec,
        groups: ProcessGroups,
        recompute: LayerRecompute = NO_RECOMPUTE,
    ) -> None:
        super().__init__()
        self.layer_number, tensor = layer_number, groups.tensor
        self.in_proj = column_linear(
            spec.in_proj, config, groups, keeps_gathered=recompute.keeps_gathered
        )
        parts = {child.name: child.part for child in spec.children()}
        conv, self.dt_bias, self.A_log = (
            parameter(next(iter(parts[name].parameters())), group=tensor)
            for name in ("conv1d.weight", "dt_bias", "A_log")
        )
        self.conv1d = CausalConvolution(conv)
        self.out_norm = norm_from_spec(spec.out_norm, config)
        self.out_proj = row_linear(spec.out_proj, config, groups)
        self.key_heads = divide(spec.num_key_heads, tensor.size, "linear_num_key_heads")
        self.value_heads = divide(spec.num_value_heads, tensor.size, "linear_num_value_heads")
        self.key_dim, self.value_dim = spec.key_dim, spec.value_dim
        self.widths = tuple(width // tensor.size for width in spec.mixed)
        self.context = context_parallel(config.parallel_config)
        self.computes_again = CORE_ATTENTION in recompute.modules

    def construct(
        self,
        hidden_states: Tensor,
        attention_mask: AttentionMask = None,
        encoder_output: None = None,
        inference_params: InferenceContext | None = None,
        rotary_pos_emb: RotaryTables | None = None,
    ) -> tuple[Tensor, None]:
        """[S, B, h] (sequence parallel: [S/p, B, h]) -> (the same shape, no bias).

        Raises:
            ValueError: documents or a mask: states know no borders between tokens; or a cache.
        """
        refuse_unserved(encoder_output=encoder_output)
        if attention_mask is not None or inference_params is not None:
            what = "a cache" if attention_mask is None else "a mask or documents in one sample"
            raise ValueError(
                f"layer {self.layer_number} has linear attention, which is not done with {what}; "
                "train on causal samples without --reset-attention-mask"
            )
        mixed, _ = self.in_proj(hidden_states)
        if self.context is not None:
            mixed = whole_sequence(mixed, self.context)
        normed = checkpoint(self._core, mixed) if self.computes_again else self._core(mixed)
        if self.context is not None:
            normed = own_tokens(normed, self.context)
        return self.out_proj(normed)[0], None

    def _core(self, mixed: Tensor) -> Tensor:
        """[S, B, in_proj's rows] -> [S, B, V * d]."""
        keys, _, values = self.widths
        sizes = (2 * keys + values, values, self.value_heads, self.value_heads)
        x, gate, rate, decay = ops.split_columns(mixed, sizes)
        q, k, v = ops.split_columns(self.conv1d(x), (keys, keys, values))
        place = mixed.shape[:2]
        out = ops.gated_delta_rule(
            q.reshape((*place, self.key_heads, self.key_dim)),
            k.reshape((*place, self.key_heads, self.key_dim)),
            v.reshape((*place, self.value_heads, self.value_dim)),
            decay,
            rate,
            self.A_log,
            self.dt_bias,
        )
        normed = ops.cast(self.out_norm(out), out.dtype)
        gates = gate.reshape(normed.shape)
        return ops.swiglu(ops.join_columns((gates, normed))).reshape((*place, values))
