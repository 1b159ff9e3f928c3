"""Mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mindspeed_ms.core.config.section import Section


@dataclass(frozen=True, kw_only=True, slots=True)
class MoEConfig(Section):
    """Section ``moe_config``: experts, router and token exchange."""

    NAME: ClassVar[str] = "moe_config"

    num_experts: int = 1
    """Experts in each MoE layer. 1: a dense model, the other keys have no effect."""

    moe_grouped_gemm: bool = False
    """Multiply all experts of a rank in one grouped kernel. False: one expert after the other."""

    moe_router_topk: int = 2
    """Experts each token is sent to."""

    moe_router_load_balancing_type: Literal[
        "none", "aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn"
    ] = "none"
    """What keeps the experts evenly used. none: nothing."""

    moe_token_dispatcher_type: Literal["alltoall", "allgather", "alltoall_seq", "flex"] = "alltoall"
    """How tokens travel to the rank of their expert."""

    use_self_defined_alltoall: bool = False
    """Compose the all-to-all from point-to-point transfers. False: the library's collective."""

    moe_expert_capacity_factor: float | None = None
    """Tokens an expert accepts, as a multiple of the even share.

    None or negative: no limit, no token is dropped.
    """

    moe_pad_expert_input_to_capacity: bool = False
    """Pad every expert's input to its capacity, so that shapes are constant.

    False: real lengths.
    """

    moe_token_drop_policy: Literal["probs", "position"] = "probs"
    """Which tokens an over-full expert drops: the least probable or the last."""

    moe_aux_loss_coeff: float = 0.0
    """Weight of the load-balancing loss."""

    moe_z_loss_coeff: float | None = None
    """Weight of the router's z-loss. None: off."""

    moe_input_jitter_eps: float | None = None
    """Relative noise on the router's input. None: off."""

    moe_ffn_hidden_size: int | None = None
    """Width of one expert. None: ffn_hidden_size of the model."""

    moe_shared_expert_intermediate_size: int | None = None
    """Total width of the expert that every token passes. None: no shared expert."""

    moe_shared_expert_overlap: bool = False
    """Run the shared expert while tokens travel. False: afterwards."""

    moe_layer_freq: tuple[int, ...] | int = 1
    """Every n-th layer is a MoE layer, or a 0/1 list with one item per layer. 1: all layers."""

    moe_router_score_function: Literal["softmax", "sigmoid"] = "softmax"
    """Turns router logits into scores."""

    moe_router_pre_softmax: bool = False
    """Take the softmax before choosing the experts. False: over the chosen ones."""

    moe_router_topk_scaling_factor: float | None = None
    """Factor on the chosen experts' weights. None: 1."""

    moe_router_enable_expert_bias: bool = False
    """Balance with a per-expert bias that is adjusted every step instead of learnt. False: off."""

    moe_router_bias_update_rate: float = 1e-3
    """Step of that adjustment."""

    moe_router_num_groups: int | None = None
    """Groups of experts for group-limited routing. None: no groups."""

    moe_router_group_topk: int | None = None
    """Groups each token may use. None: all."""

    moe_router_dtype: Literal["fp32", "fp64"] | None = None
    """Precision of the router's scores. None: the model's compute_dtype."""

    moe_permute_fusion: bool = False
    """Sort tokens with a fused kernel. False: with plain operations."""

    @property
    def is_moe(self) -> bool:
        """Whether the model has expert layers."""
        return self.num_experts > 1

    def _resolve(self) -> None:
        factor = self.moe_expert_capacity_factor
        if factor is not None and factor < 0:
            object.__setattr__(self, "moe_expert_capacity_factor", None)

    def _check(self) -> None:
        self._require_at_least(
            1,
            "num_experts",
            "moe_router_topk",
            "moe_ffn_hidden_size",
            "moe_shared_expert_intermediate_size",
            "moe_router_num_groups",
            "moe_router_group_topk",
        )
        if self.is_moe and self.moe_router_topk > self.num_experts:
            raise ValueError(
                f"moe_router_topk ({self.moe_router_topk}) must not exceed num_experts "
                f"({self.num_experts}); "
                f"lower moe_router_topk or add experts"
            )
        if self.moe_pad_expert_input_to_capacity and self.moe_expert_capacity_factor is None:
            raise ValueError(
                "moe_pad_expert_input_to_capacity needs moe_expert_capacity_factor; "
                "give a factor (1.0 is the even share) or leave padding off"
            )
