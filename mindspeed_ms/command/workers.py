# SPDX-License-Identifier: Apache-2.0
"""Work that several processes do, its results in the order of what was given."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkContext
from typing import Any, TypeVar

from mindspeed_ms.backend.parent import tie_to

Given = TypeVar("Given")
Made = TypeVar("Made")

AHEAD = 4
"""Pieces that wait, for each process: so much is in memory, however long the input is."""


class _Worker:
    """Holder of what this worker process does."""

    def __init__(self) -> None:
        self.work: Callable[[Any], Any] | None = None


_worker = _Worker()


def in_order(
    work: Callable[[Given], Made], pieces: Iterable[Given], workers: int
) -> Iterator[Made]:
    """Do something to every piece, in this process or in several.

    The processes end with this one, however it ends.

    Raises:
        ValueError: of ``work``; its place in the code of a worker is of no use here.
        RuntimeError: a worker has died.
    """
    if workers == 1:
        yield from map(work, pieces)
        return
    fork = ForkContext()  # what the work needs is there without a copy
    pool = ProcessPoolExecutor(workers, fork, _start, (work, os.getpid()))
    waiting: deque[Future[Made]] = deque()
    try:
        for piece in pieces:
            waiting.append(pool.submit(_done, piece))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process has died; if it was killed for want of memory, give fewer --workers"
        ) from None
    except ValueError as error:
        raise ValueError(str(error)) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Callable[[Any], Any], parent: int) -> None:
    """In a new worker: leave an interrupt to the parent, and die with it."""
    signal.set_wakeup_fd(-1)  # the parent's, who would take our signals for his own
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    tie = tie_to(parent, signal.SIGKILL)
    if tie is not None:
        tie()
    _worker.work = work


def _done(piece: Any) -> Any:
    assert _worker.work is not None, "the pool calls _start first"
    return _worker.work(piece)
