# SPDX-License-Identifier: Apache-2.0
"""What the heartbeats of the ranks tell: who is silent, who waits for whom, and for how long.

Every rank says about once a second which communication it is in, or was in last, and how long it
has been blocked there. A stopped process says nothing; one that computes, or hangs outside of
communication, goes on speaking while the others wait for it. Pure arithmetic on times; the server
feeds it and does what it says.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

SILENCE_SECONDS = 30.0
"""After so long without a word a rank is named; ``SILENCE_VARIABLE`` changes it."""
SILENCE_VARIABLE = "MINDSPEED_MS_SILENCE_SECONDS"
TIMEOUT_SECONDS = 600.0
"""After so long the job ends; ``--distributed-timeout-minutes`` changes it."""


@dataclass(slots=True)
class _Rank:
    heard: float
    call: str = ""
    iteration: int = 0
    blocked: float = 0.0

    @property
    def place(self) -> str:
        """Where the rank was when it last spoke."""
        call = re.sub(r"(_into)?_(tensor|single|object)$", "", self.call)
        if not call:
            return "before its first communication"
        inside = "in" if self.blocked else "after"
        return f"{inside} {call}" + (f" of iteration {self.iteration}" if self.iteration else "")


def names(ranks: Iterable[int]) -> str:
    """``rank 1, 2``; long lists are cut."""
    ordered = sorted(ranks)
    text = ", ".join(map(str, ordered[:16]))
    return f"rank {text}" + (f" and {len(ordered) - 16} more" if len(ordered) > 16 else "")


@dataclass
class Health:
    """Watches the ranks of a running job."""

    silence: float = SILENCE_SECONDS
    timeout: float = TIMEOUT_SECONDS
    _ranks: dict[int, _Rank] = field(default_factory=dict)
    _silent: set[int] = field(default_factory=set)
    """Ranks whose silence has been reported."""
    _is_stall_reported: bool = False

    def start(self, ranks: Iterable[int], now: float) -> None:
        """The job begins."""
        self._ranks = {rank: _Rank(now) for rank in ranks}

    def beat(self, rank: int, now: float, call: str, iteration: int, blocked: float) -> str | None:
        """A rank has spoken; the line that tells so if it had been reported silent."""
        pause = now - self._ranks[rank].heard
        self._ranks[rank] = _Rank(now, call, iteration, blocked)
        if rank not in self._silent:
            return None
        self._silent.remove(rank)
        return f"rank {rank} answers again after {pause:.0f} s"

    def forgive(self, seconds: float) -> None:
        """The server itself stood still: nobody could have been heard."""
        for rank in self._ranks.values():
            rank.heard += seconds

    def place(self, rank: int) -> str:
        """Where a rank was when it last spoke."""
        return self._ranks[rank].place

    def silence_of(self, rank: int, now: float) -> float:
        """Seconds since a rank has spoken."""
        return now - self._ranks[rank].heard

    def blocked(self, rank: int) -> float:
        """How long a rank has been waiting in one communication, as it said last."""
        return self._ranks[rank].blocked

    def notes(self, active: Collection[int], now: float) -> list[str]:
        """What should be said now, once for each silence and each stall.

        Args:
            active: ranks that are still at work.
            now: the time.
        """
        lines = []
        for rank in sorted(active):
            pause = self.silence_of(rank, now)
            if pause > self.silence and rank not in self._silent:
                self._silent.add(rank)
                lines.append(self._silence_line(rank, pause))
        stall = self._stall(active)
        is_stalled = stall is not None and stall[0] > self.silence and not self._silent
        if is_stalled and not self._is_stall_reported:
            assert stall is not None, "is_stalled says so"
            lines.append(stall[2])
        self._is_stall_reported = is_stalled
        return lines

    def failure(self, active: Collection[int], now: float) -> tuple[int, str] | None:
        """(rank to blame, reason) when the time is over."""
        for rank in sorted(active, key=lambda one: self._ranks[one].heard):
            pause = self.silence_of(rank, now)
            if pause > self.timeout:
                return rank, f"{self._silence_line(rank, pause)}; {self._limit()}"
        stall = self._stall(active)
        if stall is None or stall[0] <= self.timeout:
            return None
        return stall[1], f"{stall[2]}; {self._limit()}"

    def _silence_line(self, rank: int, pause: float) -> str:
        return f"rank {rank} has not answered for {pause:.0f} s, last seen {self.place(rank)}"

    def _limit(self) -> str:
        return f"the limit is --distributed-timeout-minutes ({self.timeout / 60:g})"

    def _stall(self, active: Collection[int]) -> tuple[float, int, str] | None:
        """(seconds, rank the others wait for, description) of the longest wait."""
        waiting = {rank for rank in active if self.blocked(rank) > 0}
        if not waiting:
            return None
        first = max(sorted(waiting), key=self.blocked)
        seconds = self.blocked(first)
        long = {rank for rank in waiting if self.blocked(rank) > seconds / 2}
        rest = set(active) - long
        if rest:
            blamed = min(sorted(rest), key=self.blocked)
            text = (
                f"{names(long)} {'waits' if len(long) == 1 else 'wait'} since {seconds:.0f} s "
                f"{self.place(first)} for {names(rest)}, last seen {self.place(blamed)}"
            )
            return seconds, blamed, text
        places: dict[str, list[int]] = {}
        for rank in sorted(long):
            places.setdefault(self.place(rank), []).append(rank)
        where = "; ".join(f"{names(ranks)} {place}" for place, ranks in places.items())
        return seconds, first, f"all ranks wait for each other since {seconds:.0f} s: {where}"
