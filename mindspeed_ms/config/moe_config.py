# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mindspeed_ms.config.kinds import Count, Experts, Natural, NonNegative, Positive, Share
from mindspeed_ms.config.section import Section

BalancingType = Literal[
    "none", "aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "quantile_balancing"
]

BY_CHOICES = ("sinkhorn", "quantile_balancing")
"""Types that balance by the choice of experts, not by a loss."""


@dataclass(frozen=True, kw_only=True)
class MoEConfig(Section):
    """Section ``moe_config``: experts, router and token exchange."""

    NAME: ClassVar[str] = "moe_config"

    num_experts: Experts = 1
    """Experts in each MoE layer. 1: a dense model, the other keys have no effect."""

    moe_grouped_gemm: bool = False
    """Multiply all experts of a rank in one grouped kernel, if they have no biases. False: one
    expert after the other.
    """

    moe_router_topk: Experts = 2
    """Experts each token is sent to."""

    moe_router_load_balancing_type: BalancingType | tuple[BalancingType, ...] = "none"
    """What keeps the experts evenly used: a loss over the micro-batch (aux_loss), over each
    sequence (seq_aux_loss), over all data parallel ranks (global_aux_loss), several of them,
    sinkhorn's choices, or thresholds of the experts that follow the quantiles of their logits
    (quantile_balancing). none: nothing.
    """

    seq_aux: bool = False
    """The aux_loss of moe_router_load_balancing_type is that of each sequence: seq_aux_loss."""

    moe_router_quantile_balancing_ema: Share = 0.0
    """Share of the old thresholds in the new ones. 0: they are the last step's quantiles."""

    moe_device_level_aux_loss_coeff: NonNegative = 0.0
    """Weight of a loss that balances groups of experts: those of moe_router_num_groups, else of the
    expert parallel ranks."""

    moe_comm_aux_loss_coeff: NonNegative = 0.0
    """Weight of a loss that balances how many tokens visit each of these groups."""

    moe_token_dispatcher_type: Literal["alltoall", "allgather", "alltoall_seq", "flex"] = "alltoall"
    """How tokens travel to the rank of their expert; alltoall_seq and flex are alltoall."""

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

    moe_aux_loss_coeff: NonNegative | tuple[NonNegative, ...] = 0.0
    """Weight of the load-balancing loss, or of each of them."""

    moe_z_loss_coeff: NonNegative | None = None
    """Weight of the router's z-loss. None: off."""

    moe_input_jitter_eps: Share | None = None
    """Relative noise on the router's input. None: off."""

    moe_ffn_hidden_size: Count | None = None
    """Width of one expert. None: ffn_hidden_size of the model."""

    moe_shared_expert_intermediate_size: Count | None = None
    """Total width of the expert that every token passes. None: no shared expert."""

    moe_shared_expert_overlap: bool = False
    """Run the shared expert while tokens travel. False: afterwards."""

    moe_shared_expert_gate: bool = False
    """Weigh the shared expert's output by the sigmoid of a score of the token. False: by 1."""

    moe_layer_recompute: bool = False
    """Compute MoE layers again in backward instead of keeping what is inside. False: keep it."""

    moe_per_layer_logging: bool = False
    """Print the balance losses of every layer. False: their mean only."""

    moe_layer_freq: tuple[Literal[0, 1], ...] | Count = 1
    """Every n-th layer is a MoE layer, or a 0/1 list with one item per layer. 1: all layers."""

    first_k_dense_replace: Natural = 0
    """Layers at the beginning that have no experts; the others as moe_layer_freq says."""

    moe_router_score_function: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax"
    """Turns router logits into scores; sqrtsoftplus is the root of log(1 + exp(logit))."""

    moe_router_pre_softmax: bool = False
    """Take the softmax before choosing the experts. False: over the chosen ones."""

    moe_router_norm_topk_prob: bool = False
    """With moe_router_pre_softmax, divide the chosen experts' weights by their sum. False: only the
    other ways of weighing make them sum to 1."""

    moe_router_weights: Literal["usual", "normalized", "scores"] = "usual"
    """Weights of the chosen experts: divided by their sum (normalized), so that a single one has 1;
    or their scores as they are (scores). usual: normalized with moe_router_norm_topk_prob or a
    moe_router_score_function other than softmax, but the score of a single one."""

    moe_router_topk_scaling_factor: Positive | None = None
    """Factor on the chosen experts' weights. None: 1."""

    moe_router_enable_expert_bias: bool = False
    """Balance with a per-expert bias that is adjusted every step instead of learnt. False: off."""

    moe_router_bias_update_rate: Positive = 1e-3
    """Step of that adjustment."""

    moe_router_num_groups: Experts | None = None
    """Groups of experts for group-limited routing. None: no groups."""

    moe_router_group_topk: Experts | None = None
    """Groups each token may use. None: all."""

    moe_router_group_scores: Experts | None = None
    """Best experts whose scores add up to that of a group. None: moe_router_topk /
    moe_router_group_topk."""

    moe_router_has_bias: bool = False
    """Add a learnt bias to the router's logits. False: none."""

    moe_router_dtype: Literal["fp32", "fp64"] | None = None
    """Precision of the product that gives the router's logits; scores are fp32 always. None: the
    model's compute_dtype.
    """

    moe_router_force_biased: NonNegative | None = None
    """Add to each expert's logits a constant drawn from N(0, this), to measure speed with
    imbalance. None: none."""

    moe_apply_probs_on_input: bool = False
    """With moe_router_topk 1, multiply what an expert reads by its weight. False: what it returns.
    """

    moe_latent_size: Count | None = None
    """Width at which tokens travel to experts, which is theirs outside: a matrix before and one
    behind change it. None: hidden_size."""

    moe_use_upcycling: bool = False
    """What is loaded is a dense model, from whose blocks experts are made. False: this model."""

    moe_upcycling_granularity: Count = 1
    """Experts that the block of the dense model is cut into; it is so many times as wide as one."""

    moe_router_force_load_balancing: bool = False
    """Choose experts at random, to measure speed without imbalance. False: by their scores."""

    moe_permute_fusion: bool = False
    """Megatron's choice between two ways of sorting tokens; there is one here."""

    @property
    def is_moe(self) -> bool:
        """Whether the model has expert layers."""
        return self.num_experts > 1

    @property
    def normalizes_weights(self) -> bool:
        """Whether the weights of the chosen experts are made to sum to 1."""
        if self.moe_router_weights != "usual":
            return self.moe_router_weights == "normalized"
        if self.moe_router_score_function == "softmax" and not self.moe_router_pre_softmax:
            return True
        is_asked = self.moe_router_norm_topk_prob or self.moe_router_score_function != "softmax"
        return is_asked and self.moe_router_topk > 1

    def balances_by(self, kind: str) -> bool:
        """Whether a type of load balancing is on."""
        types = self.moe_router_load_balancing_type
        return kind in ((types,) if isinstance(types, str) else types)

    def balance_coefficients(self) -> dict[str, float]:
        """Weight of every load-balancing loss that is on, by its type."""
        types, weights = self.moe_router_load_balancing_type, self.moe_aux_loss_coeff
        names = (types,) if isinstance(types, str) else types
        values = weights if isinstance(weights, tuple) else (weights,) * len(names)
        return {
            name: value
            for name, value in zip(names, values, strict=True)
            if name not in ("none", *BY_CHOICES)
        }

    def moe_layers(self, num_layers: int) -> tuple[bool, ...]:
        """For each layer whether it has experts."""
        if not self.is_moe:
            return (False,) * num_layers
        if isinstance(self.moe_layer_freq, tuple):
            return tuple(bool(item) for item in self.moe_layer_freq)
        first, every = self.first_k_dense_replace, self.moe_layer_freq
        return tuple(index >= first and index % every == 0 for index in range(num_layers))

    def _resolve(self) -> None:
        for name in ("moe_router_load_balancing_type", "moe_aux_loss_coeff"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) == 1:
                self._set(name, value[0])
        if self.seq_aux:
            types = self.moe_router_load_balancing_type
            names = (types,) if isinstance(types, str) else types
            named = tuple("seq_aux_loss" if name == "aux_loss" else name for name in names)
            self._set("moe_router_load_balancing_type", named[0] if len(named) == 1 else named)
        factor = self.moe_expert_capacity_factor
        if factor is not None and factor < 0:
            self._set("moe_expert_capacity_factor", None)

    def _check(self) -> None:
        self._check_router()
        if self.first_k_dense_replace and isinstance(self.moe_layer_freq, tuple):
            raise ValueError(
                f"moe_layer_freq {list(self.moe_layer_freq)} and first_k_dense_replace "
                f"({self.first_k_dense_replace}) both say which layers have experts; give "
                "moe_layer_freq a number, or leave the other out"
            )
        if self.moe_expert_capacity_factor == 0:
            raise ValueError(
                "moe_expert_capacity_factor (0.0) lets no expert take a token; give 1.0 for the "
                "even share, more for some room, or leave it out"
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

    def _check_router(self) -> None:
        types, weights = self.moe_router_load_balancing_type, self.moe_aux_loss_coeff
        count = 1 if isinstance(types, str) else len(types)
        if isinstance(weights, tuple) and len(weights) != count:
            raise ValueError(
                f"moe_aux_loss_coeff has {len(weights)} values for {count} load balancing types; "
                "give one for all, or one for each"
            )
        for name in BY_CHOICES:
            if self.balances_by(name) and (count > 1 or weights != 0.0):
                raise ValueError(
                    f"{name} balances by its choices and takes no loss, given {types} with "
                    f"moe_aux_loss_coeff {weights}; use {name} alone with 0"
                )
        is_late = self.moe_router_score_function == "softmax" and not self.moe_router_pre_softmax
        if self.moe_router_enable_expert_bias and is_late:
            raise ValueError(
                "moe_router_enable_expert_bias shifts the scores of experts, but "
                "moe_router_score_function softmax takes them of the chosen ones only; set it to "
                "sigmoid or sqrtsoftplus, or set moe_router_pre_softmax"
            )
        if self.balances_by("quantile_balancing") and (
            self.moe_router_enable_expert_bias or self.moe_router_num_groups is not None
        ):
            raise ValueError(
                "quantile_balancing chooses by logits alone; leave out "
                "moe_router_enable_expert_bias and moe_router_num_groups"
            )
        if self.moe_apply_probs_on_input and self.moe_router_topk != 1:
            raise ValueError(
                f"moe_apply_probs_on_input needs moe_router_topk 1, given {self.moe_router_topk}; "
                "an expert's input has one weight"
            )
        if self.moe_latent_size is not None and self.moe_shared_expert_overlap:
            raise ValueError(
                "moe_shared_expert_overlap does not go together with moe_latent_size; leave it out"
            )
        self._check_groups()
        self._check_weights()

    def _check_weights(self) -> None:
        is_late = self.moe_router_score_function == "softmax" and not self.moe_router_pre_softmax
        if is_late and self.moe_router_weights == "scores":
            raise ValueError(
                "moe_router_weights scores takes shares of all experts; set "
                "moe_router_pre_softmax, or moe_router_score_function sigmoid"
            )
        is_single = self.is_moe and self.moe_router_topk == 1 and not self.balances_by("sinkhorn")
        if is_single and is_late and self.moe_router_weights == "usual":
            raise ValueError(
                "moe_router_topk 1 takes the softmax of one score, which is always 1; set "
                "moe_router_pre_softmax, or moe_router_score_function sigmoid (or "
                "moe_router_weights normalized, if 1 is meant)"
            )

    def _check_groups(self) -> None:
        groups, taken = self.moe_router_num_groups, self.moe_router_group_topk
        if (groups is None) != (taken is None):
            raise ValueError(
                f"moe_router_num_groups ({groups}) and moe_router_group_topk ({taken}) belong "
                "together; give both or none"
            )
        if groups is None or taken is None or not self.is_moe:
            return
        best = self.moe_router_group_scores
        is_uneven = best is None and self.moe_router_topk % taken != 0
        if self.num_experts % groups or taken > groups or is_uneven:
            raise ValueError(
                f"{taken} of {groups} groups (moe_router_group_topk, moe_router_num_groups) for "
                f"{self.num_experts} experts and moe_router_topk {self.moe_router_topk}: groups "
                "must divide the experts, and the groups taken must divide topk unless "
                "moe_router_group_scores is given"
            )
        if best is not None and best > self.num_experts // groups:
            raise ValueError(
                f"moe_router_group_scores ({best}) must not exceed the "
                f"{self.num_experts // groups} experts of a group; lower it"
            )
        if taken * (self.num_experts // groups) < self.moe_router_topk:
            raise ValueError(
                f"{taken} groups of {self.num_experts // groups} experts hold fewer than "
                f"moe_router_topk ({self.moe_router_topk}); take more groups"
            )
