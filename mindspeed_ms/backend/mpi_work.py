# SPDX-License-Identifier: Apache-2.0
"""Waiting for MPI: without keeping the core, and knowing for how long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from mindspeed_ms.backend.progress import here

_POLLED_SECONDS = 1e-3
"""Peers that compute the same mostly come within this time of each other; a reduction of a few
megabytes, which makes progress only while it is polled, is over as well."""

_LONGEST_SLEEP = 1e-3

_SPUN_SECONDS = 5e-5
"""Polled without giving the core away: where others want it, it comes back milliseconds later."""


class CallClock:
    """Knows how long the process has been inside a blocking MPI call, and how such a call ended.

    Args:
        failures: exceptions that mean that MPI could not communicate.
        on_failure: called with the first of them; does not return.
    """

    __slots__ = ("entered", "failures", "on_failure")

    def __init__(
        self,
        failures: tuple[type[BaseException], ...] = (),
        on_failure: Callable[[BaseException], object] = repr,
    ) -> None:
        self.entered = 0.0
        self.failures = failures
        self.on_failure = on_failure

    def __enter__(self) -> None:
        self.entered = time.monotonic()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.entered = 0.0
        if isinstance(error, self.failures):
            self.on_failure(error)

    def seconds(self) -> float:
        """Time since the call was entered; 0 outside of calls."""
        entered = self.entered
        return time.monotonic() - entered if entered else 0.0


def wait_asleep(request: Any) -> None:
    """Wait for an MPI request without keeping the core from whatever else wants to run.

    MPI's own waits poll until the peer comes, which on a machine that others use too takes the
    core from that very peer; giving it away is no help between sessions, which the kernel serves
    by turns. So only the first moment is polled; the sleeps after it grow with the time waited.
    """
    started = time.perf_counter()
    while not request.Test():
        waited = time.perf_counter() - started
        if waited < _SPUN_SECONDS:
            continue
        if waited < _POLLED_SECONDS:
            os.sched_yield()
        else:
            time.sleep(min(_LONGEST_SLEEP, waited / 8))


class MpiWork:
    """An MPI request, the memory it uses, and what remains to be done after it."""

    def __init__(
        self,
        request: Any,
        clock: CallClock,
        keep: tuple[Any, ...],
        finish: Callable[[], None] | None = None,
    ) -> None:
        """Take over a started request.

        Args:
            request: the ``MPI.Request``.
            clock: runs while ``wait`` is blocked.
            keep: tensors and arrays that must outlive the request.
            finish: run once, after completion (rounding, copying into the output).
        """
        self._request = request
        self._clock = clock
        self._keep = keep
        self._finish = finish
        self._is_done = False
        self._call = here.call

    def wait(self) -> None:
        """Block until the result is in the output tensor."""
        if not self._is_done:
            here.call = self._call
            clock = self._clock
            clock.entered = time.monotonic()  # ``with clock`` would be two calls of every wait
            try:
                wait_asleep(self._request)
            except clock.failures as error:
                clock.on_failure(error)
                raise
            finally:
                clock.entered = 0.0
            self._complete()

    def is_completed(self) -> bool:
        """Test the request, which also lets MPI make progress."""
        if not self._is_done and self._request.Test():
            self._complete()
        return self._is_done

    def _complete(self) -> None:
        self._is_done = True
        if self._finish is not None:
            self._finish()
        self._keep, self._finish = (), None
