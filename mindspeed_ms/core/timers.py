# SPDX-License-Identifier: Apache-2.0
"""Timers of the parts of a step, under Megatron's names.

A run has one ``Timers``; code that takes time opens ``timed(name, level)`` around it. Timers above
the run's level cost the look-up of one object.

Source: Megatron-LM ``megatron/core/timers.py`` (levels, names, what a barrier is for).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from mindspeed_ms.backend import comm, device
from mindspeed_ms.core import run_state


class Timers:
    """Seconds by name since they were taken last."""

    def __init__(self) -> None:
        self.level = 0
        """Timers of higher levels are off: 1 main parts of a step, 2 everything."""
        self.waits = False
        """Level 1 timers begin when all ranks have come."""
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add to a timer what was measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def taken(self, names: Iterable[str]) -> dict[str, float]:
        """The times of some timers, which begin anew; those that were not used are left out."""
        return {name: self.seconds.pop(name) for name in names if name in self.seconds}


class _Running:
    """One measurement."""

    __slots__ = ("_name", "_start", "_timers", "_waits")

    def __init__(self, timers: Timers, name: str, waits: bool) -> None:
        self._timers, self._name, self._waits = timers, name, waits

    def __enter__(self) -> None:
        if self._waits:
            comm.barrier()
        device.synchronize()
        self._start = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        device.synchronize()
        self._timers.add(self._name, time.perf_counter() - self._start)


_OFF = nullcontext()


def timed(name: str, level: int) -> AbstractContextManager[None]:
    """Measure a block.

    Args:
        name: of the timer; blocks of one name add up.
        level: from which level of the run on it is measured.

    Parallelism: with level 1 all ranks of the world enter the block, as they may wait for each
    other at its beginning.
    """
    timers = run_state.member_of_current(Timers)
    if level > timers.level:
        return _OFF
    return _Running(timers, name, waits=timers.waits and level == 1)
