# SPDX-License-Identifier: Apache-2.0
"""Sizes of one micro-batch on one rank, which activations are multiples of."""

from __future__ import annotations

from dataclasses import dataclass

STATISTICS = 8
"""Bytes per token of a norm's mean and reciprocal deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSizes:
    """One micro-batch on one rank. Legend: S tokens of a sequence on this rank, b micro-batch."""

    tokens: int
    """S b, inside the tensor parallel regions."""

    rows: int
    """The same outside: S b / t with sequence parallelism."""

    width: int
    """Bytes of the compute type."""

    stream_width: int
    """Bytes of the residual stream's type."""

    tensor: int
    """Tensor parallel ranks, t."""

    expert_tensor: int
    """Ranks that split an expert."""

    def stream(self, hidden: int) -> int:
        """Bytes of the residual stream."""
        return self.rows * hidden * self.stream_width

    def normed(self, hidden: int) -> int:
        """Bytes of its normalised copy."""
        return self.rows * hidden * self.width
