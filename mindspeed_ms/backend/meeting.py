# SPDX-License-Identifier: Apache-2.0
"""Ranks of one host that wait for each other in memory they share.

A meeting through MPI is a message to be looked for again and again. Here the system wakes a rank
when the last of the others has come, so waiting takes nothing from whoever wants the core, and
nobody sleeps longer than it must.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SPUN_SECONDS = 5e-5
"""Looked for without giving the core away: to be woken takes about as long."""

_APART = 64
"""Bytes from one semaphore to the next: a cache line, and more than a ``sem_t`` takes."""

_MORE_NUMBERS = 8
"""That a rank can tell beside one per rank."""


def _semaphore_calls() -> dict[str, Any]:
    """The C library's functions; empty where it has none that several processes can use."""
    library = ctypes.CDLL(None, use_errno=True)
    names = ("sem_init", "sem_post", "sem_trywait", "sem_wait")
    found: dict[str, Any] = {name: getattr(library, name, None) for name in names}
    if None in found.values():
        return {}
    found["sem_init"].argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint)
    for name in names[1:]:
        found[name].argtypes = (ctypes.c_void_p,)
    return found


class Meeting:
    """Where the ranks of a group wait for each other, and what they tell.

    There is a semaphore for every pair of ranks, and a board with two halves: while some still read
    what was told, others may tell the next.

    Args:
        shared: ``num_bytes`` of memory that all ranks map, zeros in the beginning.
        ranks: of the group.
        rank: this one's place.
        spun_seconds: how long to look for the others before sleeping.
    """

    def __init__(
        self, shared: np.ndarray, ranks: int, rank: int, spun_seconds: float = SPUN_SECONDS
    ) -> None:
        self._rank, self._spun_seconds, self._turn = rank, spun_seconds, 0
        calls = _semaphore_calls()
        self._init, self._post, self._try, self._wait = calls.values()
        semaphores = shared.ctypes.data
        self._all = [semaphores + _APART * at for at in range(ranks * ranks)]
        others = [k for k in range(ranks) if k != rank]
        self._theirs = [self._all[k * ranks + rank] for k in others]
        self._mine = [self._all[rank * ranks + k] for k in others]
        board = shared[_APART * ranks * ranks : self.num_bytes(ranks)]
        self._board = board.view(np.int64).reshape(2, ranks, -1)

    @staticmethod
    def is_possible() -> bool:
        """Whether this system has semaphores that processes share."""
        return bool(_semaphore_calls())

    @staticmethod
    def num_bytes(ranks: int) -> int:
        """Size for so many ranks."""
        return _APART * ranks * ranks + 2 * ranks * (ranks + _MORE_NUMBERS) * 8

    def prepare(self) -> None:
        """Make the semaphores; one rank does it, before any meets.

        Raises:
            OSError: the system refuses.
        """
        for semaphore in self._all:
            if self._init(semaphore, 1, 0):
                raise OSError(ctypes.get_errno(), "sem_init failed")

    def tell(self, numbers: Sequence[int]) -> np.ndarray:
        """The numbers of every rank, [ranks, numbers]; comes back when all ranks are here."""
        half = self._board[self._turn & 1, :, : len(numbers)]
        self._turn += 1
        half[self._rank] = numbers
        self.meet()
        return half.copy()

    def meet(self) -> None:
        """Nobody goes on before all are here."""
        for semaphore in self._theirs:
            self._post(semaphore)
        for semaphore in self._mine:
            if self._try(semaphore):
                until = time.perf_counter() + self._spun_seconds
                while self._try(semaphore):
                    if time.perf_counter() > until:
                        _taken(self._wait, semaphore)
                        break


def _taken(wait: Callable[[int], int], semaphore: int) -> None:
    """Sleep until a semaphore can be taken.

    Raises:
        OSError: it is none.
    """
    while wait(semaphore):
        code = ctypes.get_errno()
        if code != errno.EINTR:  # a signal's handler has run
            raise OSError(code, f"sem_wait failed: {os.strerror(code)}")
