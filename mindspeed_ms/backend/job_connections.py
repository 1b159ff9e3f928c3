# SPDX-License-Identifier: Apache-2.0
"""The server's side of all connections of a job: who may talk to it, how much, and for how long.

A connection begins with the proof of ``job_secret``; until then its bytes are only counted. Nothing
here blocks: what cannot be sent at once waits in a buffer of bounded size. Strangers have little
time and limited room, so any number of idle connections leaves room for the job's own ranks.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import selectors
import socket
import time
from collections import Counter
from dataclasses import dataclass, field

from mindspeed_ms.backend import job_secret
from mindspeed_ms.backend.job_messages import MAX_LINE

STRANGER_SECONDS = 5.0
"""Time to prove to be of this job."""
GUEST_SECONDS = 20.0
"""Time to say what for, after that."""
_STRANGERS = 128
"""Unproven connections at least kept at a time; twice the ranks if that is more."""
_ACCEPTED_AT_ONCE = 64
_MAX_UNSENT = 1 << 20
_MOST_REFUSED = 16
_PAUSE_SECONDS = 0.02
_UNREACHABLE_SECONDS = 30
"""So long may sent data stay unconfirmed: a cable that is out for ten seconds does no harm."""


def tune(connection: socket.socket) -> None:
    """Notice within half a minute when the other host has vanished; send small messages at once."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    options = {
        "TCP_KEEPIDLE": 10,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 4,
        "TCP_USER_TIMEOUT": 1000 * _UNREACHABLE_SECONDS,
    }
    for option, value in options.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def is_cut(error: OSError | None) -> bool:
    """Whether a connection ended because the network did; a process that ends closes it."""
    lost = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
    return error is not None and error.errno in lost


@dataclass(eq=False)
class Peer:
    """One connection."""

    connection: socket.socket
    host: str
    """Its address."""
    is_local: bool
    deadline: float
    """When it is dropped unless it has said what it is for by then."""
    number: bytes
    """What it has to sign."""
    is_proven: bool = False
    inbox: bytearray = field(default_factory=bytearray)
    outbox: bytearray = field(default_factory=bytearray)

    @property
    def is_open(self) -> bool:
        """Whether the connection is still there."""
        return self.connection.fileno() >= 0


@dataclass(frozen=True)
class Event:
    """A line of a proven peer, or the end of its connection."""

    peer: Peer
    line: bytes | None = None
    error: OSError | None = None
    """Why it ended; None: the peer closed it."""
    complaint: str | None = None
    """Why the server ended it."""


class Connections:
    """Listens on one port and speaks with those who know the secret."""

    def __init__(self, secret: bytes | None, host: str, port: int, size: int) -> None:
        """Listen at once.

        Args:
            secret: what peers must know; None: see ``job_secret``.
            host: address to listen on.
            port: TCP port; 0 lets the system choose.
            size: ranks that will come.

        Raises:
            RuntimeError: the address cannot be used.
        """
        self._max_strangers = max(_STRANGERS, 2 * size)
        _raise_file_limit(self._max_strangers + 3 * size + 64)
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = _listen(host, port, size)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.port = int(self._listener.getsockname()[1])
        self._secret = job_secret.job_secret(self.port) if secret is None else secret
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._strangers: dict[Peer, None] = {}
        """Peers without proof, oldest first."""
        self._guests: dict[Peer, None] = {}
        """Peers with proof that have not said yet what they are for."""
        self._events: list[Event] = []
        self._refused: dict[str, bool] = {}
        """Addresses of peers with a wrong proof -> whether that has been told."""

    def wake(self) -> None:
        """Let a running ``poll`` return, from another thread."""
        with contextlib.suppress(OSError):  # it may have been closed
            self._wake_writer.send(b"x")

    def poll(self, seconds: float) -> list[Event]:
        """Wait for something to happen and return what proven peers did."""
        ready = self._selector.select(0.0 if self._events else seconds)
        for key, mask in ready:  # those who are in come before those who want to
            if isinstance(key.data, Peer) and key.data.is_open:
                if mask & selectors.EVENT_WRITE:
                    self._flush(key.data)
                if mask & selectors.EVENT_READ and key.data.is_open:
                    self._read(key.data)
        self._drop_late()
        if any(key.fileobj is self._listener for key, _ in ready):
            self._accept()
        events, self._events = self._events, []
        return events

    def take_refused(self) -> list[str]:
        """Addresses from which a wrong proof has come, each told once."""
        new = [host for host, is_told in self._refused.items() if not is_told]
        self._refused.update(dict.fromkeys(new, True))
        return new

    def settle(self, peer: Peer) -> None:
        """The peer has said what it is for: it may stay."""
        self._strangers.pop(peer, None)
        self._guests.pop(peer, None)

    def send(self, peer: Peer, data: bytes) -> None:
        """Send now or as soon as the peer reads; one that does not is dropped."""
        if not peer.is_open:
            return
        peer.outbox += data
        self._flush(peer)
        if len(peer.outbox) > _MAX_UNSENT:
            self._end(peer, complaint="it does not read what it is sent")

    def drop(self, peer: Peer) -> None:
        """Close a connection without a word."""
        self.settle(peer)
        if peer.is_open:
            self._selector.unregister(peer.connection)
            peer.connection.close()

    def close_door(self) -> None:
        """Listen no longer; existing connections stay."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """End everything."""
        self.close_door()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._wake_writer.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            assert self._listener is not None, "only a listening server is asked"
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no file descriptors: those of strangers are the ones to spare
                for peer in list(self._strangers):
                    self.drop(peer)
                time.sleep(_PAUSE_SECONDS)
                return
            self._welcome(connection, address[0])

    def _welcome(self, connection: socket.socket, host: str) -> None:
        if len(self._strangers) >= self._max_strangers:
            self._make_room()
        connection.setblocking(False)
        tune(connection)
        peer = Peer(
            connection,
            host=host,
            is_local=connection.getsockname()[0] == host,
            deadline=time.monotonic() + STRANGER_SECONDS,
            number=job_secret.new_number(),
        )
        self._selector.register(connection, selectors.EVENT_READ, peer)
        self._strangers[peer] = None
        self.send(peer, job_secret.MAGIC + peer.number)

    def _make_room(self) -> None:
        """Drop the oldest stranger of the address that has most of them."""
        crowd = Counter(peer.host for peer in self._strangers).most_common(1)[0][0]
        self.drop(next(peer for peer in self._strangers if peer.host == crowd))

    def _drop_late(self) -> None:
        now = time.monotonic()
        for peer in [p for p in (*self._strangers, *self._guests) if now > p.deadline]:
            self.drop(peer)

    def _flush(self, peer: Peer) -> None:
        try:
            while peer.outbox:
                del peer.outbox[: peer.connection.send(peer.outbox)]
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(peer, error)
            return
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.outbox else 0)
        if self._selector.get_key(peer.connection).events != mask:
            self._selector.modify(peer.connection, mask, peer)

    def _read(self, peer: Peer) -> None:
        try:
            received = peer.connection.recv(MAX_LINE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(peer, error)
            return
        if not received:
            self._end(peer)
            return
        peer.inbox += received
        if not peer.is_proven and len(peer.inbox) >= job_secret.PROOF_BYTES:
            self._prove(peer)
        if peer.is_proven and peer.is_open:
            self._split(peer)

    def _prove(self, peer: Peer) -> None:
        proof = bytes(peer.inbox[: job_secret.PROOF_BYTES])
        answer = job_secret.check_client(self._secret, peer.number, proof)
        if answer is None:
            if len(self._refused) < _MOST_REFUSED:
                self._refused.setdefault(peer.host, False)
            with contextlib.suppress(OSError):
                peer.connection.send(job_secret.REFUSED)
            self.drop(peer)
            return
        del peer.inbox[: job_secret.PROOF_BYTES]
        peer.is_proven = True
        del self._strangers[peer]
        self._guests[peer] = None
        peer.deadline = time.monotonic() + GUEST_SECONDS
        self.send(peer, answer)

    def _split(self, peer: Peer) -> None:
        *lines, rest = peer.inbox.split(b"\n")
        self._events += [Event(peer, line=bytes(line)) for line in lines]
        peer.inbox = rest
        if len(rest) > MAX_LINE:
            self._end(peer, complaint=f"it sent a line of more than {MAX_LINE} bytes")

    def _end(self, peer: Peer, error: OSError | None = None, complaint: str | None = None) -> None:
        """Close a connection and report it, if the peer was one of ours."""
        if peer.is_open:
            self.drop(peer)
            if peer.is_proven:
                self._events.append(Event(peer, error=error, complaint=complaint))


def _listen(host: str, port: int, size: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind((host, port))
        listener.listen(_STRANGERS + size)
    except (OSError, OverflowError) as error:
        listener.close()
        raise RuntimeError(
            f"the scheduler cannot listen on {host}:{port} ({error}); it needs a free "
            "port on an address of this host: choose another --master_port or --master_addr"
        ) from None
    return listener


def _raise_file_limit(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed and soft != resource.RLIM_INFINITY:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
