"""Options of data parallel gradient reduction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedDataParallelConfig:
    """How gradients are summed over the data parallel group."""

    average_in_collective: bool = False
    """Let the collective average, instead of scaling gradients before it sums."""

    mem_align_elements: int = 1
    """Each parameter's gradient starts at a multiple of this many elements of the flat buffer."""
