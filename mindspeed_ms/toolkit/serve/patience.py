# SPDX-License-Identifier: Apache-2.0
"""Connections that have nothing to say yet: how long they may stay, and how many there may be."""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from typing import Any

SPARE_FILES = 100
"""Files of a process that are not for connections."""

_TEXT = b"the request's headers did not arrive in time\r\n"
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_TEXT), _TEXT)
)


def room_for_connections() -> int:
    """Connections that this process can have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, soft - SPARE_FILES) if soft != resource.RLIM_INFINITY else 1 << 20


class _Patience:
    """What is added to a protocol of ``uvicorn``; an object is one connection."""

    seconds: float
    most: int
    waiting: OrderedDict[Any, asyncio.TimerHandle]
    """Connections without a request, those that have waited longest first."""

    connections: set[Any]
    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait."""
        super().connection_made(transport)  # type: ignore[misc]
        self._expect()
        if len(self.connections) > self.most:
            next(iter(self.waiting))._give_up()

    def data_received(self, data: bytes) -> None:
        """Take a part, and see whether headers are complete with it."""
        super().data_received(data)  # type: ignore[misc]
        if self._is_asked:
            self._forget()
        elif self not in self.waiting and not self.transport.is_closing():
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._forget()
        super().connection_lost(exc)  # type: ignore[misc]

    @property
    def _is_asked(self) -> bool:
        """Whether a request has come that is not answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _expect(self) -> None:
        self.waiting[self] = self.loop.call_later(self.seconds, self._tell_late)

    def _forget(self) -> None:
        timer = self.waiting.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _tell_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_LATE)
        self.transport.close()
        self.loop.call_later(1.0, self._give_up)  # of who does not read

    def _give_up(self) -> None:
        self._forget()
        self.transport.abort()


def patient(protocol: type[Any], seconds: float, most: int) -> type[Any]:
    """A web server's protocol that waits for the headers of a request for some time only.

    The time runs from the connection, or from the first byte behind an answer, to the end of the
    headers, whatever arrives meanwhile. With too many connections the one that has waited longest
    is given up for the new one; those whose request is worked at are never.

    Args:
        protocol: of ``uvicorn``.
        seconds: for the headers.
        most: connections at a time.
    """
    own = {"seconds": seconds, "most": most, "waiting": OrderedDict()}
    return type("Patient", (_Patience, protocol), own)
