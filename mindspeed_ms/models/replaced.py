# SPDX-License-Identifier: Apache-2.0
"""What stands in place of attention or of a feed-forward block: a linear layer, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mindspeed_ms.models.part import Child, Composite, LinearSpec
from mindspeed_ms.models.sizes import RankSizes
from mindspeed_ms.plan.recompute_plan import LayerRecompute


@dataclass(frozen=True, kw_only=True, slots=True)
class _Instead(Composite):
    """A linear layer of the residual stream's width, whose outputs ranks split and gather."""

    hidden: int
    linear: LinearSpec | None
    """None: the residual stream passes by."""

    def children(self) -> Iterator[Child]:
        """Megatron has no level between."""
        if self.linear is not None:
            yield Child("linear", "", self.linear)

    def kept_bytes(self, sizes: RankSizes, recompute: LayerRecompute) -> int:
        """Nothing but the input, which the layer counts."""
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionInsteadSpec(_Instead):
    """In place of attention."""

    def operations(self, seq_length: int) -> tuple[float, float]:
        """Of a token's forward: (projection, none)."""
        return 0.0 if self.linear is None else self.linear.operations, 0.0

    def cached_numbers(self, ranks: int) -> int:
        """Nothing is kept of earlier tokens."""
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPInsteadSpec(_Instead):
    """In place of a feed-forward block."""

    @property
    def operations(self) -> float:
        """Of a token's forward."""
        return 0.0 if self.linear is None else self.linear.operations

    def widest_bytes(self, sizes: RankSizes) -> int:
        """Gradients at its widest place."""
        return 0 if self.linear is None else sizes.tokens * self.hidden * sizes.width
