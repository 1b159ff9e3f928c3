# SPDX-License-Identifier: Apache-2.0
"""Linear attention with a gated delta rule (Yang et al., 2024): a layer that keeps a state.

Legend: h hidden, K key heads of width c, V value heads of width d, w taps of the convolution; S
tokens of a sequence, b micro-batch, t tensor parallel ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mindspeed_ms.config.dtypes import DType
from mindspeed_ms.models.parameter import Init, ParamSpec
from mindspeed_ms.models.part import Child, Composite, Experts, LinearSpec, NormSpec
from mindspeed_ms.models.sizes import RankSizes
from mindspeed_ms.plan.recompute_plan import CORE_ATTENTION, LayerRecompute
from mindspeed_ms.plan.region import Stack


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorSpec:
    """A parameter by itself whose first dimension tensor parallel ranks split."""

    shape: tuple[int, ...]
    dtype: DType
    init: Init
    stride: Stack = 1

    def parameters(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """It has no name of its own."""
        yield ParamSpec(
            name="",
            megatron_name="",
            shape=self.shape,
            dtype=self.dtype,
            init=self.init,
            partition_dim=0,
            partition_stride=self.stride,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedDeltaSpec(Composite):
    """One matrix for queries, keys, values, gates, rates and decays; a convolution; a state.

    The rows of ``in_proj`` are those of all heads of one kind after the other: [queries, keys,
    values, gates, rates, decays], K c, K c, V d, V d, V and V of them. Ranks split every kind.

    Source: Megatron-LM ``GatedDeltaNet`` (names and rows).
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    in_proj: LinearSpec
    out_proj: LinearSpec
    out_norm: NormSpec

    @property
    def mixed(self) -> tuple[int, int, int]:
        """Channels of queries, keys and values, over all ranks."""
        keys = self.num_key_heads * self.key_dim
        return keys, keys, self.num_value_heads * self.value_dim

    def children(self) -> Iterator[Child]:
        """In the order of construction."""
        yield Child("in_proj", "in_proj", self.in_proj)
        dtype, heads = self.in_proj.dtype, (self.num_value_heads,)
        conv = VectorSpec(
            shape=(sum(self.mixed), 1, self.taps),
            dtype=dtype,
            init=Init(std=1.0, bound=1.0 / math.sqrt(self.taps)),
            stride=self.mixed,
        )
        yield Child("conv1d.weight", "conv1d.weight", conv)
        ones = VectorSpec(shape=heads, dtype=dtype, init=Init(value=1.0))
        yield Child("dt_bias", "dt_bias", ones)
        decays = VectorSpec(shape=heads, dtype=dtype, init=Init(std=1.0, log_range=(1.0, 16.0)))
        yield Child("A_log", "A_log", decays)
        yield Child("out_norm", "out_norm", self.out_norm)
        yield Child("out_proj", "out_proj", self.out_proj)

    def cached_numbers(self, ranks: int) -> int:
        """A state does not grow with the tokens."""
        return 0

    def operations(self, seq_length: int) -> tuple[float, float]:
        """Of a token's forward: (projections and convolution, state)."""
        projections = self.in_proj.operations + self.out_proj.operations
        projections += 2.0 * self.taps * sum(self.mixed)
        return projections, 6.0 * self.num_value_heads * self.key_dim * self.value_dim

    def kept_bytes(self, sizes: RankSizes, recompute: LayerRecompute) -> int:
        """What enters the convolution and leaves it, gates, and the result before both norms.

        States are kept once in 32 tokens, in float32.
        """
        mixed, values = sum(self.mixed), self.mixed[2]
        kept = sizes.tokens * sizes.width * (2 * mixed + 4 * values) // sizes.tensor
        if CORE_ATTENTION in recompute.modules:
            return kept
        states = -(-sizes.tokens // 32) * 4 * self.num_value_heads * self.key_dim * self.value_dim
        return kept + states // sizes.tensor
