# SPDX-License-Identifier: Apache-2.0
"""One rank builds while the others wait, without a collective that could run into a time limit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from mindspeed_ms.backend import comm

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

REPORT_SECONDS = 20.0
"""How long ranks wait at most before they tell each other that work goes on."""


class _Work(threading.Thread, Generic[Result]):
    """Work in its own thread; keeps its result or its error."""

    def __init__(self, work: Callable[[], Result]) -> None:
        super().__init__(name="dataset-builder", daemon=True)
        self._work = work
        self.result: Result | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Do the work."""
        try:
            self.result = self._work()
        except Exception as error:  # noqa: BLE001  (raised again by the caller, on every rank)
            self.error = error


def build_together(work: Callable[[], Result] | None) -> Result | None:
    """Run ``work`` on the ranks that have some; all return when all are done.

    Args:
        work: what this rank has to do; None to wait.

    Raises:
        RuntimeError: it failed on another rank; names the rank and its error. The rank itself
            raises its own error.

    Parallelism:
        Called by every rank together. Waiting is cut into short exchanges of all ranks, so that
        no time limit of a collective applies however long the work takes.
    """
    if not comm.is_initialized() or comm.get_world_size() == 1:
        return None if work is None else work()
    thread = None if work is None else _Work(work)
    if thread is not None:
        thread.start()
    waited = 0.0
    while True:
        if thread is not None:
            thread.join(REPORT_SECONDS)
        is_working = thread is not None and thread.is_alive()
        error = None if thread is None or thread.error is None else str(thread.error)
        states = comm.all_gather_object((is_working, error))
        failed = [rank for rank, (_, text) in enumerate(states) if text is not None]
        if failed:
            if thread is not None and thread.error is not None:
                raise thread.error
            raise RuntimeError(
                f"building the datasets failed on rank {failed[0]}: {states[failed[0]][1]}"
            )
        if not any(working for working, _ in states):
            return None if thread is None else thread.result
        waited += REPORT_SECONDS
        if comm.get_rank() == 0:
            logger.info("still building index files after %.0f s", waited)
