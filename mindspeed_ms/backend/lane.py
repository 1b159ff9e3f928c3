# SPDX-License-Identifier: Apache-2.0
"""Collectives in the background: a thread that makes the calls of a group one after the other."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from mindspeed_ms.backend.mpi_work import CallClock
from mindspeed_ms.backend.progress import here


class LaneWork:
    """A call that a lane makes, or has made."""

    def __init__(
        self, call: Callable[[], object], keep: tuple[object, ...], clock: CallClock
    ) -> None:
        self._call: Callable[[], object] | None = call
        self._keep = keep
        self._clock = clock
        self._name = here.call
        self._is_over = threading.Event()
        self.done = 0.0
        """When the result was there, on the clock of ``time.perf_counter``."""
        self._error: BaseException | None = None

    def make(self) -> None:
        """Make the call, on the lane's thread."""
        assert self._call is not None, "a call is made once"
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is wanted
            self._error = error
        self.done = time.perf_counter()
        self._call, self._keep = None, ()  # and the tensors they hold
        self._is_over.set()

    def wait(self) -> None:
        """Block until the result is in the output tensor."""
        if not self._is_over.is_set():
            here.call = self._name
        with self._clock:
            self._is_over.wait()
            if self._error is not None:
                raise self._error

    def is_completed(self) -> bool:
        """Whether the result is there."""
        return self._is_over.is_set()


class Lane:
    """Makes calls in the order in which they are begun; every rank begins them in the same.

    Its thread sleeps while it has nothing to do, and while it waits for other ranks. It keeps
    nobody from ending the process.
    """

    def __init__(self, name: str, clock: CallClock) -> None:
        self._clock = clock
        self._works: queue.SimpleQueue[LaneWork | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def begin(self, call: Callable[[], object], keep: tuple[object, ...] = ()) -> LaneWork:
        """Have a call made after those begun before; what it works on is kept until then."""
        work = LaneWork(call, keep, self._clock)
        self._works.put(work)
        return work

    def end(self) -> None:
        """Wait for what has been begun, and end the thread."""
        self._works.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            work.make()
