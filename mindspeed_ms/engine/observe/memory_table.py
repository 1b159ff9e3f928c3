# SPDX-License-Identifier: Apache-2.0
"""Memory of every rank, planned beside measured, as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one rank."""

    rank: int
    stage: int
    current: int
    peak: int
    base: int
    """In use before the model was built: the interpreter and its libraries."""

    def facts(self) -> dict[str, int]:
        """As plain data."""
        return asdict(self)


def memory_lines(
    iteration: int, ranks: Sequence[RankMemory], stages: Sequence[Mapping[str, Any]] | None
) -> list[str]:
    """The table.

    Args:
        iteration: where the run stands.
        ranks: what was measured.
        stages: what was planned for each pipeline stage, see ``facts.plan_facts``; None: nothing.
    """
    lines = [
        f"memory (MB) after {iteration} iterations",
        " rank | stage | planned: weights | gradients | optimizer | activations |     peak "
        "| measured: now |     peak | of the run, at its peak",
    ]
    for one in ranks:
        planned = ["-"] * 5
        if stages is not None:
            stage = stages[one.stage]
            names = ("weights", "gradients", "optimizer", "activations", "peak")
            planned = [f"{stage[name] / _MIB:.1f}" for name in names]
        weights, gradients, optimizer, activations, peak = planned
        lines.append(
            f" {one.rank:4d} | {one.stage:5d} | {weights:>16} | {gradients:>9} | {optimizer:>9} | "
            f"{activations:>11} | {peak:>8} | {one.current / _MIB:13.1f} | "
            f"{one.peak / _MIB:8.1f} | {max(0, one.peak - one.base) / _MIB:.1f}"
        )
    return lines
