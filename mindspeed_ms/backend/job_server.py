"""The server that holds a CPU job together: it starts MPI, and ends the job when a rank dies.

It listens on one port. Every rank keeps a *control* connection (JSON lines) open for its whole life
and, while MPI starts, a *PMI* connection (see ``pmi_server``). Who is alive is thus known from the
connections, before, during and after the start of MPI:

    rank -> join {rank?, local_rank?, pid}      wait {}, later                       <- server
                                                start {rank, size, local_rank, ...}  <- server
    rank -> abort {reason}                      stop {reason}                        <- server
    rank -> leave {}                            finalize {}, when all leave          <- server
    rank -> status {blocked}                    status {}, while some have left      <- server
                                                detach {}                            <- server

A rank that has ended waits for ``finalize``, so that MPI's collective finalization cannot hang. If
all the others turn out to be blocked in communication meanwhile, they wait for the one that has
left, and the job fails. ``detach`` says that the server ends before the job does.

The scheduler process of ``msrun`` runs it, rank 0 under ``mpiexec``, and the parent in the tests.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_ms.backend.pmi_server import PmiSpace, ProtocolError, parse_line, process_mapping

SHARED_MEMORY = Path("/dev/shm")

_TICK_SECONDS = 0.5
_LINGER_SECONDS = 3.0
_DEADLOCK_SECONDS = 4.0
"""So long must all remaining ranks be blocked, in one call each, to be given up."""

_MAX_LINE = 1 << 16


def enable_keepalive(connection: socket.socket) -> None:
    """Notice within half a minute when the other host has vanished; send small messages at once."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def remove_shared_memory(space_name: str) -> None:
    """Delete what MPICH left in shared memory for the job of this name, on this host.

    The segment is called after the FNV-1a hash of the name. Processes that have it mapped keep it;
    only its name goes.
    """
    digest = 0x811C9DC5
    for byte in space_name.encode():
        digest = (digest ^ byte) * 0x01000193 & 0xFFFFFFFF
    for leftover in SHARED_MEMORY.glob(f"mpich_shm_{digest:x}_*"):
        leftover.unlink(missing_ok=True)


@dataclass(eq=False)
class _Peer:
    """One connection."""

    connection: socket.socket
    host: str
    is_local: bool
    buffer: bytes = b""
    is_pmi: bool = False
    rank: int = -1
    wish: dict[str, Any] = field(default_factory=dict)
    """The join request, kept until all ranks are there."""

    @property
    def is_open(self) -> bool:
        return self.connection.fileno() >= 0

    def send(self, text: str) -> None:
        try:
            self.connection.sendall(text.encode())
        except OSError:
            return  # a dead peer is reported when its connection is read


class JobServer:
    """Serves one job of ``size`` ranks on ``host:port`` (port 0: a free one)."""

    def __init__(
        self, size: int, host: str = "127.0.0.1", port: int = 0, join_timeout: float = -1.0
    ) -> None:
        """Listen at once, so that the address is known before ranks are started.

        Args:
            size: number of ranks.
            host: address to listen on.
            port: TCP port; 0 lets the system choose.
            join_timeout: seconds to wait for all ranks; negative waits for ever.

        Raises:
            RuntimeError: the address cannot be used.
        """
        self.size = size
        self.space_name = uuid.uuid4().hex[:16]
        self.failure: str | None = None
        self.failed_rank: int | None = None
        self._join_deadline = time.monotonic() + join_timeout if join_timeout >= 0 else None
        self._selector = selectors.DefaultSelector()
        self._listener = self._listen(host, port)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._stopped = False
        self._space: PmiSpace | None = None
        self._waiting: list[_Peer] = []
        self._control: dict[int, _Peer] = {}
        self._pmi: dict[int, _Peer] = {}
        self._leaving: set[int] = set()
        self._blocked: dict[int, float] = {}
        self._asked = 0.0
        self._has_dismissed = False
        self._gone: set[int] = set()

    def _listen(self, host: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            raise RuntimeError(
                f"the scheduler cannot listen on {host}:{port} ({error.strerror}); it needs a free "
                "port on an address of this host: choose another --master_port or --master_addr"
            ) from None
        listener.listen(self.size + 8)
        self._selector.register(listener, selectors.EVENT_READ)
        return listener

    @property
    def port(self) -> int:
        """The port ranks connect to."""
        return int(self._listener.getsockname()[1])

    def start_thread(self) -> threading.Thread:
        """Serve in a daemon thread of this process."""
        thread = threading.Thread(target=self.serve, name="job-server", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Make ``serve`` return soon; ranks still connected go on without a server."""
        self._stopped = True
        with contextlib.suppress(OSError):  # serving may have ended by itself
            self._wake_writer.send(b"x")

    def serve(self, check: Callable[[JobServer], str | None] | None = None) -> str | None:
        """Serve until every rank has left, one has failed, or ``stop``.

        Args:
            check: asked twice a second while ranks are missing; a text it returns ends the job.

        Returns:
            The reason of failure, naming the rank; None if all ranks left in order.
        """
        try:
            while not self._stopped and self.failure is None and self._is_in_use():
                if self._space is None:
                    self._check_missing(check)
                elif self._leaving and not self._has_dismissed:
                    self._check_deadlock()
                self._poll()
            if self.failure is not None:
                self._broadcast_failure()
            elif self._stopped:
                self._tell_all({"op": "detach"})
            remove_shared_memory(self.space_name)
        finally:
            self._close()
        return self.failure

    def _is_in_use(self) -> bool:
        """False when all ranks are gone; MPICH says good-bye on the PMI connection last of all."""
        return len(self._gone) < self.size or any(p.is_open for p in self._pmi.values())

    def joined_pids(self) -> set[int]:
        """Process ids of the local ranks that have connected."""
        peers = [*self._waiting, *self._control.values()]
        return {int(peer.wish.get("pid", -1)) for peer in peers if peer.is_local}

    def _fail(self, rank: int | None, reason: str) -> None:
        if self.failure is None:
            self.failed_rank, self.failure = rank, reason

    def _poll(self) -> None:
        for key, _ in self._selector.select(_TICK_SECONDS):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, _Peer):
                self._read(key.data)

    def _accept(self) -> None:
        connection, address = self._listener.accept()
        enable_keepalive(connection)
        connection.settimeout(5.0)
        is_local = connection.getsockname()[0] == address[0]
        peer = _Peer(connection, host=address[0], is_local=is_local)
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _read(self, peer: _Peer) -> None:
        try:
            received = peer.connection.recv(_MAX_LINE)
        except OSError:
            received = b""
        if not received:
            self._drop(peer)
            return
        peer.buffer += received
        *lines, peer.buffer = peer.buffer.split(b"\n")
        try:
            for line in lines:
                self._handle(peer, line.decode())
        except (ProtocolError, ValueError) as error:
            if peer.rank >= 0:
                self._fail(peer.rank, f"rank {peer.rank} broke the start-up protocol: {error}")
            self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        """Forget a closed connection; the death of a rank ends the job."""
        self._selector.unregister(peer.connection)
        peer.connection.close()
        if peer in self._waiting:
            self._waiting.remove(peer)
            self._fail(
                peer.wish.get("rank"), self._obituary(peer, "before all ranks had connected")
            )
        elif not peer.is_pmi and peer.rank >= 0:
            self._gone.add(peer.rank)
            if not self._has_dismissed:
                self._fail(peer.rank, self._obituary(peer, "while the job was running"))

    def _obituary(self, peer: _Peer, when: str) -> str:
        rank = peer.wish.get("rank") if peer.rank < 0 else peer.rank
        name = "a rank" if rank is None else f"rank {rank}"
        text = f"{name} (pid {peer.wish.get('pid')} on {peer.host}) died {when}"
        if self._space is None and self._missing():
            text += f"; {self._missing()} had not connected yet"
        return text

    def _missing(self) -> str:
        known = {peer.wish.get("rank") for peer in self._waiting}
        count = self.size - len(self._waiting)
        if None in known or not count:
            return f"{count} of {self.size} ranks" if count else ""
        names = [str(rank) for rank in range(self.size) if rank not in known]
        return f"rank {', '.join(names)}"

    def _check_missing(self, check: Callable[[JobServer], str | None] | None) -> None:
        reason = check(self) if check else None
        if reason:
            self._fail(None, reason)
        elif self._join_deadline is not None and time.monotonic() > self._join_deadline:
            self._fail(
                None,
                f"{self._missing()} did not connect in time; start all {self.size} workers or "
                "raise --cluster_time_out",
            )

    def _handle(self, peer: _Peer, line: str) -> None:
        if peer.is_pmi or line.startswith("cmd="):
            self._handle_pmi(peer, line)
            return
        message = json.loads(line)
        operation = message.get("op") if isinstance(message, dict) else None
        if operation == "join":
            self._join(peer, message)
        elif operation == "abort" and peer.rank >= 0:
            self._fail(peer.rank, f"rank {peer.rank} failed: {message.get('reason')}")
        elif operation == "leave" and peer.rank >= 0:
            self._leave(peer.rank)
        elif operation == "status" and peer.rank >= 0:
            self._blocked[peer.rank] = float(message.get("blocked", 0.0))
        else:
            raise ProtocolError(f"unexpected message {line[:80]!r}")

    def _join(self, peer: _Peer, wish: dict[str, Any]) -> None:
        refusal = self._refusal(wish)
        if refusal:
            peer.send(json.dumps({"op": "refuse", "reason": refusal}) + "\n")
            return
        peer.wish = wish
        self._waiting.append(peer)
        peer.send(json.dumps({"op": "wait"}) + "\n")
        if len(self._waiting) == self.size:
            self._start()

    def _refusal(self, wish: dict[str, Any]) -> str | None:
        rank = wish.get("rank")
        if self._space is not None:
            return "the job on this port has already started; choose another --master_port"
        if wish.get("size") != self.size:
            return f"this worker expects {wish.get('size')} ranks, the scheduler {self.size}"
        if rank is not None and not 0 <= rank < self.size:
            return f"rank {rank} is outside 0..{self.size - 1}; check --node_rank"
        if rank is not None and any(peer.wish.get("rank") == rank for peer in self._waiting):
            return f"rank {rank} has connected twice; give every host its own --node_rank"
        return None

    def _start(self) -> None:
        """Give every rank its number and open the PMI space."""
        peers, self._waiting = self._in_rank_order(), []
        hosts = [peer.host for peer in peers]
        self._space = PmiSpace(self.size, self.space_name, process_mapping(hosts))
        for rank, peer in enumerate(peers):
            peer.rank = rank
            self._control[rank] = peer
            answer = {
                "op": "start",
                "rank": rank,
                "size": self.size,
                "local_rank": hosts[:rank].count(peer.host),
                "local_size": hosts.count(peer.host),
            }
            peer.send(json.dumps(answer) + "\n")

    def _in_rank_order(self) -> list[_Peer]:
        """Ranks as asked for; where a host asks for none, consecutive numbers, own host first."""
        first_seen = {peer.host: index for index, peer in reversed(list(enumerate(self._waiting)))}
        free = sorted(
            (peer for peer in self._waiting if peer.wish.get("rank") is None),
            key=lambda p: (not p.is_local, first_seen[p.host], p.wish.get("local_rank") or 0),
        )
        taken = {peer.wish["rank"]: peer for peer in self._waiting if peer not in free}
        return [taken[r] if r in taken else free.pop(0) for r in range(self.size)]

    def _handle_pmi(self, peer: _Peer, line: str) -> None:
        request = parse_line(line)
        if self._space is None:
            raise ProtocolError("a PMI request came before all ranks had joined")
        if not peer.is_pmi:
            rank = int(request.get("pmiid", -1))
            if request["cmd"] != "initack" or rank not in self._control:
                raise ProtocolError(f"a PMI connection began with {line[:80]!r}")
            peer.is_pmi, peer.rank = True, rank
            self._pmi[rank] = peer
        if request["cmd"] == "abort":
            self._fail(peer.rank, f"rank {peer.rank} called MPI_Abort; see its log")
            return
        for rank, reply in self._space.handle(peer.rank, line):
            self._pmi[rank].send(reply)

    def _leave(self, rank: int) -> None:
        """Let the ranks go when the last one leaves."""
        self._leaving.add(rank)
        if len(self._leaving) == self.size:
            self._has_dismissed = True
            self._tell_all({"op": "finalize"})

    def _check_deadlock(self) -> None:
        """Fail when every remaining rank is blocked: only those that have left could free them."""
        remaining = [rank for rank in self._control if rank not in self._leaving]
        if min(self._blocked.get(rank, 0.0) for rank in remaining) > _DEADLOCK_SECONDS:
            first = min(self._leaving)
            left, stuck = (", ".join(map(str, sorted(r))) for r in (self._leaving, remaining))
            self._fail(first, f"rank {left} ended while rank {stuck} waited for communication")
        elif time.monotonic() - self._asked > _TICK_SECONDS:
            self._asked = time.monotonic()
            for rank in remaining:
                self._control[rank].send(json.dumps({"op": "status"}) + "\n")

    def _broadcast_failure(self) -> None:
        """Tell everyone why, and wait until they are gone."""
        peers = self._tell_all({"op": "stop", "reason": self.failure})
        deadline = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < deadline and any(p.is_open for p in peers):
            self._poll()

    def _tell_all(self, message: dict[str, Any]) -> list[_Peer]:
        peers = [*self._control.values(), *self._waiting]
        for peer in peers:
            peer.send(json.dumps(message) + "\n")
        return peers

    def _close(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._wake_writer.close()
