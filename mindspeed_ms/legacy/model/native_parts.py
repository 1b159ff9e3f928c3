# SPDX-License-Identifier: Apache-2.0
"""What layers are made of, as csrc/decode_layers.cpp reads it.

Norms, one projection for queries, keys and values or latent ones, rotation, windows, caps, sinks,
an MLP, or a mixture of experts with its router, a shared expert and its gate.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor
from mindspore.common.dtype import Type
from mindspore.nn import Cell
from numpy.typing import NDArray

from mindspeed_ms.backend import memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.backend.numpy_types import bfloat16_to_float32
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.legacy.model.attention import CoreAttention, ParallelAttention
from mindspeed_ms.legacy.model.mlp import ParallelMLP
from mindspeed_ms.legacy.model.moe.moe_layer import MoELayer
from mindspeed_ms.legacy.model.moe.router import TopKRouter
from mindspeed_ms.legacy.model.multi_latent_attention import MultiLatentAttention
from mindspeed_ms.legacy.model.norm import LayerNorm, NormOfHeads, RMSNorm
from mindspeed_ms.ops.cpu import decode
from mindspeed_ms.ops.cpu.library import STORAGE

Floats = NDArray[np.float32]


class UnknownPartError(Exception):
    """A part that the native stack does not have."""


class NativeParts:
    """Makes native layers, and keeps what their addresses point at.

    Matrices are read where they are; vectors and the matrices of routers are copied.

    Args:
        dtype: type of the matrices.
        in_int8: keep copies of the matrices as eight bits, with a factor per row.
        group: tensor parallel ranks, whose outputs are summed after attention and after MLPs.
    """

    def __init__(self, dtype: Type, in_int8: bool, group: Group) -> None:
        self.dtype, self.in_int8, self.group = dtype, in_int8, group
        self._kept: list[Any] = []

    # --- sizes ------------------------------------------------------------------------------------

    def stack(self, layers: Sequence[Cell], config: TransformerConfig) -> decode.Stack:
        """What all layers share.

        Raises:
            UnknownPartError: they do not share it, or another activation.
        """
        if config.hidden_act not in decode.ACTIVATIONS:
            raise UnknownPartError(config.hidden_act)
        sizes = {_sizes(layer.attention) for layer in layers}
        if len(sizes) > 1:
            raise UnknownPartError("layers of several sizes")
        if config.qk_layernorm_full and self.group.size > 1:
            raise UnknownPartError("a norm of heads that ranks share out")
        if layers[0].is_parallel and layers[0].residual_after_norm:
            raise UnknownPartError("blocks side by side that norms are added to")
        heads, groups, dim, interleaved = sizes.pop()
        return decode.Stack(
            hidden=config.hidden_size,
            heads=heads,
            groups=groups,
            dim=dim,
            storage=STORAGE[self.dtype],
            activation=decode.ACTIVATIONS[config.hidden_act],
            interleaved=interleaved,
            adds_normed=layers[0].residual_after_norm,
            side_by_side=layers[0].is_parallel,
            normalizes_jointly=config.qk_layernorm_full,
            norms_of_heads=config.qk_layernorm_per_head,
            multiplier=layers[0].residual_multiplier,
            limit=config.activation_func_clamp_value or 0.0,
            offset=config.glu_linear_offset,
            clip=config.clip_qkv or 0.0,
        )

    @staticmethod
    def turns(attention: Cell) -> slice | None:
        """Which of the model's tables turn the heads of a layer."""
        if isinstance(attention, MultiLatentAttention):
            return slice(0, 2)
        return attention.tables if attention.rotates else None

    # --- layers -----------------------------------------------------------------------------------

    def layer(self, layer: Cell) -> decode.Layer:
        """A layer.

        Raises:
            UnknownPartError: it has a part that the stack does not have.
        """
        attention, mlp = layer.attention, layer.mlp
        result = decode.Layer(
            input_norm=self.norm(layer.input_norm),
            attention_post_norm=self.norm(layer.attn_post_norm),
            mlp_norm=self.norm(
                layer.input_norm if layer.shares_norm else layer.post_attention_norm
            ),
            mlp_post_norm=self.norm(layer.ffn_post_norm),
            attention_out=self._summed(attention.out_proj),
        )
        if type(attention) is ParallelAttention:
            result.qkv = self._of(attention.qkv_proj)
            result.q_norm = self.norm(attention.q_layernorm)
            result.k_norm = self.norm(attention.k_layernorm)
        elif type(attention) is MultiLatentAttention and _sees_all(attention):
            result.latent = self._address(self._latent(attention))
        else:
            raise UnknownPartError(type(attention).__name__)
        self._set_scores(result, attention.core_attention)
        if type(mlp) is ParallelMLP:
            result.mlp_in, result.mlp_out = self._of(mlp.mapping), self._summed(mlp.projection)
        elif type(mlp) is MoELayer:
            result.mixture = self._address(self._mixture(mlp))
        else:
            raise UnknownPartError(type(mlp).__name__)
        return result

    def _set_scores(self, result: decode.Layer, core: CoreAttention) -> None:
        """What happens between queries and keys."""
        options: dict[str, Any] = core.options
        left, right = options["window"]
        if right not in (None, 0) or not core.is_causal or options["storage"] is not None:
            raise UnknownPartError("attention")
        result.left = decode.UNBOUNDED if left is None else left
        result.scale, result.softcap = options["scale"], options["softcap"] or 0.0
        if options["slopes"] is not None:
            result.slopes = self._vector(np.array(options["slopes"], np.float32))
        if core.softmax_offset is not None:
            result.sinks = self._vector(in_fp32(core.softmax_offset))

    def _latent(self, attention: MultiLatentAttention) -> decode.Latent:
        sizes, result = attention.latent, decode.Latent()
        if attention.q_down_proj is None:
            result.q_up = self._of(attention.q_proj)
        else:
            result.q_down = self._of(attention.q_down_proj)
            result.q_up = self._of(attention.q_up_proj)
        result.kv_down, result.kv_up = (
            self._of(attention.kv_down_proj),
            self._of(attention.kv_up_proj),
        )
        result.q_norm = self.norm(attention.q_layernorm)
        result.kv_norm = self.norm(attention.kv_layernorm)
        if result.kv_up.bias:
            raise UnknownPartError("keys with a bias")
        result.rank, result.plain = sizes.kv_lora_rank, sizes.qk_head_dim
        result.value_dim = sizes.v_head_dim
        return result

    def _mixture(self, layer: MoELayer) -> decode.Mixture:
        experts = list(layer.experts.local_experts)
        if (
            len(experts) != layer.router.num_experts
            or layer.fc1_latent_proj is not None
            or layer.weighs_input
            or layer.expert_tensor_group.ranks != self.group.ranks
        ):
            raise UnknownPartError("experts")
        result = self._router(layer.router)
        kind = decode.Linear * len(experts)
        inward = kind(*(self._of(expert.mapping) for expert in experts))
        outward = kind(*(self._summed(expert.projection) for expert in experts))
        result.inward, result.outward = self._address(inward), self._address(outward)
        if layer.shared_experts is not None:
            result.shared_in = self._of(layer.shared_experts.mlp.mapping)
            result.shared_out = self._summed(layer.shared_experts.mlp.projection)
            if layer.shared_experts.gate is not None:
                result.shared_gate = self._of(layer.shared_experts.gate)
        return result

    def _router(self, router: TopKRouter) -> decode.Mixture:
        """The choice of experts; see ``TopKRouter.routing``."""
        config, function = router.config, router.config.moe_router_score_function
        is_forced = config.moe_router_force_load_balancing or config.moe_router_force_biased
        if is_forced or config.balances_by("sinkhorn") or router.qb_beta is not None:
            raise UnknownPartError("router")
        weight = in_fp32(router.weight)
        is_single, factor = function != "softmax", config.moe_router_topk_scaling_factor
        is_first = is_single or config.moe_router_pre_softmax
        result = decode.Mixture(
            router=decode.Linear(self._vector(weight), None, None, *router.weight.shape[::-1]),
            experts=router.num_experts,
            choices=router.topk,
            scores=decode.SCORES[function],
            scores_first=is_first,
            normalizes=is_first and config.normalizes_weights,
            rounds=config.moe_router_dtype is None,
            factor=1.0 if factor is None else factor,
        )
        groups, taken = config.moe_router_num_groups, config.moe_router_group_topk
        if groups is not None and taken is not None:
            result.groups, result.open_groups = groups, taken
            result.group_scores = config.moe_router_group_scores or router.topk // taken
        if router.bias is not None:
            result.bias = self._vector(in_fp32(router.bias))
        if router.expert_bias is not None:
            result.has_a_say = self._vector(in_fp32(router.expert_bias))
        return result

    # --- their pieces -----------------------------------------------------------------------------

    def norm(self, norm: Cell | None) -> decode.Norm:
        """A norm; None: none."""
        if norm is None:
            return decode.Norm()
        if type(norm) is NormOfHeads:
            is_centred = norm.spec.kind == "LayerNorm"
            weight = in_fp32(norm.gamma if is_centred else norm.weight) + norm.spec.zero_centered
            own = np.array_split(weight.astype(np.float32), self.group.size)[self.group.rank]
            return decode.Norm(self._vector(own), None, norm.spec.eps, is_centred)
        if type(norm) not in (LayerNorm, RMSNorm):
            raise UnknownPartError(type(norm).__name__)
        is_centred = type(norm) is LayerNorm
        weight = in_fp32(norm.gamma if is_centred else norm.weight) + norm.zero_centered
        has_bias = is_centred and norm.beta is not None
        bias = self._vector(in_fp32(norm.beta)) if has_bias else None
        return decode.Norm(self._vector(weight.astype(np.float32)), bias, norm.eps, is_centred)

    def linear(
        self, weight: Tensor, bias: Tensor | None, dtype: Type | None = None
    ) -> decode.Linear:
        """A matrix [n, m] with its bias.

        Args:
            weight: the matrix.
            bias: [n].
            dtype: type of the matrix, if it is not that of the others.
        """
        if weight.dtype != (dtype or self.dtype) or getattr(weight, "before_use", None) is not None:
            raise UnknownPartError("weights that are not there as they are used")
        outputs, inputs = weight.shape
        vector = None if bias is None else self._vector(in_fp32(bias))
        self._kept.append(weight)
        if not self.in_int8:
            return decode.Linear(weight.data_ptr(), vector, None, inputs, outputs)
        narrow, scales = decode.quantized_rows(weight)
        self._kept.append(narrow)
        return decode.Linear(narrow.ctypes.data, vector, self._vector(scales), inputs, outputs)

    def _of(self, cell: Cell) -> decode.Linear:
        """The matrix of a Cell, and its bias."""
        return self.linear(cell.weight, getattr(cell, "bias", None))

    def _summed(self, cell: Cell) -> decode.Linear:
        """The same of a Cell whose outputs are summed over the ranks: one of them adds the bias."""
        bias = getattr(cell, "bias", None)
        return self.linear(cell.weight, bias if self.group.rank == 0 else None)

    def _vector(self, values: Floats) -> int:
        """Address of an array that is kept."""
        self._kept.append(values)
        return values.ctypes.data

    def _address(self, structure: ctypes.Structure | ctypes.Array[decode.Linear]) -> int:
        """Address of a structure that is kept."""
        self._kept.append(structure)
        return ctypes.addressof(structure)


def _sees_all(attention: MultiLatentAttention) -> bool:
    """Whether no indexer chooses its keys."""
    return attention.indexer is None and attention.chooser is None


def _sizes(attention: Cell) -> tuple[int, int, int, bool]:
    """Heads, groups, channels that a token keeps, and whether neighbours turn as a pair."""
    if isinstance(attention, MultiLatentAttention):
        latent = attention.latent
        width = latent.kv_lora_rank + latent.qk_pos_emb_head_dim
        return attention.num_heads_per_partition, 1, width, latent.rotary_interleaved
    if attention.sharers > 1:
        raise UnknownPartError("ranks that share keys and values")
    groups, dim = attention.num_groups_per_partition, attention.head_dim
    return groups * attention.queries_per_group, groups, dim, attention.rotary_interleaved


def in_fp32(values: Tensor) -> Floats:
    """A copy as an array, flat."""
    return widened(memory.flat_view(memory.contiguous(values)))


def widened(values: NDArray) -> Floats:
    """A copy in fp32."""
    if values.dtype == np.uint16:  # bfloat16 as its bits
        return bfloat16_to_float32(values)
    return np.array(values, np.float32)
