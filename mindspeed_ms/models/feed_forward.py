# SPDX-License-Identifier: Apache-2.0
"""Feed-forward blocks: dense ones and mixtures of experts.

Legend: h hidden, f inner width, E experts, K choices per token; w bytes of the compute type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mindspeed_ms.models.parameter import ParamSpec
from mindspeed_ms.models.part import (
    BufferSpec,
    Child,
    Composite,
    Experts,
    LinearSpec,
    parameters_of,
)
from mindspeed_ms.models.sizes import RankSizes
from mindspeed_ms.plan.recompute_plan import (
    MLP_ACTIVATION,
    MOE,
    MOE_ACTIVATION,
    SHARED_EXPERTS,
    LayerRecompute,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPSpec(Composite):
    """h -> f -> h; with a gated activation the first matrix is [gate; up]."""

    mapping: LinearSpec
    projection: LinearSpec
    activation: str
    """Name of the function between the matrices, or of the gate; see
    ``TransformerConfig.hidden_act``."""

    is_gated: bool

    limit: float | None = None
    """Of a gated unit: the gate is at most this, the value between this and its negative."""

    offset: float = 0.0
    """Of a gated unit: added to the value."""

    alpha: float = 1.702
    """Of a unit gated by quick_gelu: the factor within its sigmoid."""

    @property
    def width(self) -> int:
        """F."""
        return self.projection.inputs

    @property
    def operations(self) -> float:
        """Of a token's forward."""
        return self.mapping.operations + self.projection.operations

    def children(self) -> Iterator[Child]:
        """Both matrices."""
        yield Child("mapping", "linear_fc1", self.mapping)
        yield Child("projection", "linear_fc2", self.projection)

    def inner_bytes(self, tokens: int, ranks: int, width: int) -> tuple[int, int]:
        """(first matrix's output, second one's input) of some tokens, split over ranks."""
        inner = tokens * self.width // ranks * width
        return inner * (2 if self.is_gated else 1), inner

    def kept_bytes(self, sizes: RankSizes, recompute: LayerRecompute) -> int:
        """What both matrices keep, without the input of the first."""
        mapped, activated = self.inner_bytes(sizes.tokens, sizes.tensor, sizes.width)
        return mapped if MLP_ACTIVATION in recompute.modules else mapped + activated

    def widest_bytes(self, sizes: RankSizes) -> int:
        """Gradients at the widest place of the block."""
        return sum(self.inner_bytes(sizes.tokens, sizes.tensor, sizes.width))


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedExpertSpec(Composite):
    """The expert that every token passes, weighed by the sigmoid of a score if there is a gate."""

    mlp: MLPSpec
    gate: LinearSpec | None = None

    @property
    def operations(self) -> float:
        """Of a token's forward."""
        return self.mlp.operations

    def children(self) -> Iterator[Child]:
        """Megatron has no level between."""
        yield Child("mlp", "", self.mlp)
        if self.gate is not None:
            yield Child("gate", "gate", self.gate)

    def parameters(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """Those of the parts; the gate's only matrix is called ``gate_weight`` by Megatron."""
        for spec in parameters_of(self.children(), experts):
            yield replace(spec, megatron_name=spec.megatron_name.replace("gate.", "gate_"))


@dataclass(frozen=True, kw_only=True, slots=True)
class MoESpec(Composite):
    """A mixture of experts."""

    num_experts: int
    topk: int
    router: LinearSpec
    expert: MLPSpec
    """Every one of them."""
    expert_bias: BufferSpec | None = None
    thresholds: BufferSpec | None = None
    """Of quantile balancing."""
    latent_down: LinearSpec | None = None
    latent_up: LinearSpec | None = None
    """From the hidden size to the width at which experts read and write, and back."""
    shared: SharedExpertSpec | None = None

    @property
    def operations(self) -> float:
        """Of a token's forward."""
        shared = 0.0 if self.shared is None else self.shared.operations
        narrow = sum(one.operations for one in (self.latent_down, self.latent_up) if one)
        return self.router.operations + self.topk * self.expert.operations + shared + narrow

    def children(self) -> Iterator[Child]:
        """Megatron's order of construction."""
        yield Child("router", "router", self.router)
        if self.expert_bias is not None:
            yield Child("router.expert_bias", "router.expert_bias", self.expert_bias)
        if self.thresholds is not None:
            yield Child("router.qb_beta", "router.qb_beta", self.thresholds)
        if self.latent_down is not None and self.latent_up is not None:
            yield Child("fc1_latent_proj", "fc1_latent_proj", self.latent_down)
            yield Child("fc2_latent_proj", "fc2_latent_proj", self.latent_up)
        for number in range(self.num_experts):
            path = f"experts.local_experts.{number}"
            yield Child(path, path, self.expert, number)
        if self.shared is not None:
            yield Child("shared_experts", "shared_experts", self.shared)

    def kept_bytes(self, sizes: RankSizes, recompute: LayerRecompute) -> int:
        """Experts see every token K times, evenly spread over the ranks."""
        if MOE in recompute.modules:
            return 0
        copies = sizes.rows * self.topk
        gathered = copies * sizes.expert_tensor  # every rank of an expert sees all its tokens
        mapped, activated = self.expert.inner_bytes(gathered, sizes.expert_tensor, sizes.width)
        kept = mapped if MOE_ACTIVATION in recompute.modules else mapped + activated
        hidden = self.expert.mapping.inputs
        if self.latent_up is not None:
            kept += sizes.rows * hidden * sizes.width
        kept += 3 * copies * hidden * sizes.width + 8 * sizes.rows * self.num_experts
        if self.shared is not None and SHARED_EXPERTS not in recompute.modules:
            kept += self.shared.mlp.kept_bytes(sizes, recompute)
        return kept

    def widest_bytes(self, sizes: RankSizes) -> int:
        """Gradients at the widest place of the block."""
        copies = sizes.rows * self.topk * sizes.expert_tensor
        return sum(self.expert.inner_bytes(copies, sizes.expert_tensor, sizes.width))
