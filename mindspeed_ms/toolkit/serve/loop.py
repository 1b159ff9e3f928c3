# SPDX-License-Identifier: Apache-2.0
"""The steps of a server: the first rank says what joins and leaves, all ranks do it."""

from __future__ import annotations

import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mindspeed_ms.backend import comm
from mindspeed_ms.toolkit.serve.batch import Beams, ContinuousBatch, Event, Failed, Piece, Request
from mindspeed_ms.toolkit.serve.metrics import Metrics

HEARTBEAT_SECONDS = 2.0
"""So long an idle server waits before its ranks meet again: none may wait longer than the time
after which a silent rank counts as lost."""


@dataclass(slots=True)
class Order:
    """What happens before the next step."""

    joining: list[Request]
    leaving: list[int]
    is_last: bool = False
    """Nothing joins any more; the loop ends with the last request."""


Listener = Callable[[Event], None]


class FullError(Exception):
    """No room for a request in the queue."""


class StoppingError(Exception):
    """The server takes in nothing any more."""


class Desk:
    """Where the web server's thread leaves requests, and the steps' thread finds them.

    Args:
        max_open: sequences that may run or wait.
        metrics: what counts.
    """

    def __init__(self, max_open: int, metrics: Metrics) -> None:
        self.max_open, self.metrics = max_open, metrics
        self._inbox: queue.SimpleQueue[Request | int | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open: dict[int, tuple[Request, Listener, float]] = {}
        self._unfinished: dict[int, int] = {}
        self._numbers = itertools.count()
        self._is_stopping = False

    # --- the web server's thread ------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], listener: Listener) -> list[int]:
        """Hand requests in, all or none; their numbers.

        Args:
            requests: their ``number`` is replaced.
            listener: is called with every event, in the steps' thread.

        Raises:
            FullError: there is no room for all.
            StoppingError: the server ends.
        """
        rows = sum(len(request.names) for request in requests)
        with self._lock:
            if self._is_stopping:
                raise StoppingError
            if sum(self._unfinished.values()) + rows > self.max_open:
                raise FullError
            numbered = [replace(request, number=next(self._numbers)) for request in requests]
            for request in numbered:
                self._open[request.number] = (request, listener, time.monotonic())
                self._unfinished[request.number] = len(request.names)
        for request in numbered:
            self._inbox.put(request)
        return [request.number for request in numbered]

    def cancel(self, numbers: Sequence[int]) -> None:
        """Forget requests whose client has left; those that are done are no longer there."""
        for number in numbers:
            with self._lock:
                is_open = self._close(number)
            if is_open:
                self.metrics.cancelled.inc()
                self._inbox.put(number)

    @property
    def num_open(self) -> int:
        """Sequences that run or wait."""
        with self._lock:
            return sum(self._unfinished.values())

    @property
    def is_stopping(self) -> bool:
        """Whether nothing is taken in any more."""
        return self._is_stopping

    # --- the steps' thread ------------------------------------------------------------------------

    def stop(self) -> None:
        """Take in nothing any more. Safe in a signal handler: it takes no lock."""
        self._is_stopping = True
        self._inbox.put(None)

    def take(self, may_wait: bool) -> Order:
        """What has come since the last call; with ``may_wait`` a moment is waited for something."""
        order = Order([], [])
        try:
            message = self._inbox.get(may_wait, HEARTBEAT_SECONDS if may_wait else None)
            while True:
                if isinstance(message, Request):
                    order.joining.append(message)
                elif message is not None:
                    order.leaving.append(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            pass
        with self._lock:  # a request that was let in before the stop is still to be done
            order.is_last = self._is_stopping and not self._open
        return order

    def deliver(self, events: Sequence[Event]) -> None:
        """Tell the listeners."""
        for event in events:
            with self._lock:
                found = self._open.get(event.number)
                if found is None:  # its client has left in this step
                    continue
                if isinstance(event, Beams | Failed):
                    self._close(event.number)
                elif isinstance(event, Piece) and event.finish is not None:
                    self._unfinished[event.number] -= 1
                    if not self._unfinished[event.number]:
                        self._close(event.number)
            request, listener, since = found
            self.metrics.note(event, request, since)
            listener(event)

    def fail(self, message: str) -> None:
        """Tell all listeners that no more comes."""
        with self._lock:
            self._is_stopping = True
            waiting = list(self._open.items())
            self._open.clear()
            self._unfinished.clear()
        for number, (_, listener, _) in waiting:
            listener(Failed(number, message, is_internal=True))

    def _close(self, number: int) -> bool:
        self._unfinished.pop(number, None)
        return self._open.pop(number, None) is not None


def run(batch: ContinuousBatch, desk: Desk | None, log_interval: int = 0) -> None:
    """Step until the desk is told to stop and all requests are answered.

    Args:
        batch: the requests.
        desk: on the first rank, where they come from.
        log_interval: steps between two lines about the batch; 0: none.

    Parallelism: collective over the world; only rank 0 has a desk.
    """
    is_shared = comm.get_world_size() > 1
    num_steps = 0
    while True:
        order = Order([], [])
        if desk is not None:
            order = desk.take(may_wait=not batch.has_work)
        if is_shared:
            order = comm.broadcast_object(order, 0)
        for number in order.leaving:
            batch.cancel(number)
        for request in order.joining:
            if request.number not in order.leaving:
                batch.add(request)
        if order.is_last and not batch.has_work:
            return
        events = batch.step()
        if desk is not None:
            desk.metrics.note_step(batch, bool(events))
            num_steps += bool(events)
            if log_interval and events and num_steps % log_interval == 0:
                running, waiting = batch.num_running, batch.num_waiting
                sys.stdout.write(f"step {num_steps}: {running} running, {waiting} waiting\n")
                sys.stdout.flush()
            desk.deliver(events)
