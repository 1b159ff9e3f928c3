# SPDX-License-Identifier: Apache-2.0
"""The server that holds a CPU job together: it starts MPI, and ends the job when a rank dies.

It listens on one port. Every rank keeps a *control* connection (``job_messages``) open for its
whole life and, while MPI starts, a second one for MPICH's own requests (see ``pmi_server``). Who is
alive is thus known from the connections, and who is well from the heartbeats on them:

    rank -> join {size, rank?, local_rank?, pid, name}      wait {}, later            <- server
                                                            start {rank, size, ...}   <- server
    rank -> pmi {rank}, on a second connection              pmi {}                    <- server
    rank -> running {}, when MPI is up; limits {timeout}
    rank -> beat {call, iteration, blocked}                 beat {}, note {text}      <- server
    rank -> abort {reason, blames_peer}                     stop {reason, rank}       <- server
    rank -> leave {}                                        finalize {}, to all       <- server
    anybody of the job -> gone {rank, reason}               detach {}                 <- server

A rank that has ended waits for ``finalize``, so that MPI's collective finalization cannot hang. If
all the others turn out to be blocked in communication meanwhile, they wait for the one that has
left, and the job fails. ``gone`` is sent for a process that ends without ever joining. ``detach``
says that the server ends before the job does.

The scheduler process of ``msrun`` runs it, rank 0 under ``mpiexec``, and the parent in the tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from mindspeed_ms.backend import env, job_messages
from mindspeed_ms.backend.job_connections import Connections, Event, Peer, is_cut
from mindspeed_ms.backend.job_health import SILENCE_SECONDS, SILENCE_VARIABLE, Health, names
from mindspeed_ms.backend.job_messages import FROM_RANK, Message, ProtocolError
from mindspeed_ms.backend.job_roll import Member, RollCall, address_for
from mindspeed_ms.backend.job_secret import VARIABLE
from mindspeed_ms.backend.pmi_server import PmiSpace, parse_line, process_mapping

SHARED_MEMORY = Path("/dev/shm")

_TICK_SECONDS = 0.5
_PAUSE_SECONDS = 5.0
"""A tick that comes later than this means that the server itself stood still."""
_LINGER_SECONDS = 3.0
_DEADLOCK_SECONDS = 4.0
"""So long must all remaining ranks be blocked, in one call each, to be given up."""
_GRACE_SECONDS = 2.0
"""A rank that blames its peers waits so long for the news of the one that has really failed."""
_MISSED_BEATS = 4
"""So many heartbeats missed make a silent rank the likelier cause of a failed communication."""
_WAITING_SECONDS = 30.0
"""How often it is said which ranks are still missing at the start."""
_AFTER_START = ("barrier_in", "finalize", "abort")
"""PMI commands that MPI still needs once it is up on every rank."""


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


def remove_abandoned_memory(older_than: float = 600.0) -> None:
    """Delete MPICH's segments of this user that no process has mapped any more.

    ``mpiexec`` that is killed while MPI starts takes all its ranks along, so nobody else can. Jobs
    of containers that share the memory, but not the processes, need a name only while they start.

    Args:
        older_than: seconds since a segment was made; younger ones may be about to be mapped.
    """
    young, me = time.time() - older_than, os.getuid()
    with contextlib.suppress(OSError):
        old = [
            segment
            for segment in SHARED_MEMORY.glob("mpich_shm_*")
            if segment.stat().st_uid == me and segment.stat().st_mtime < young
        ]
        if not old:
            return
        mapped = "".join(_maps_of_all())
        for segment in old:
            if segment.name not in mapped:
                segment.unlink(missing_ok=True)


def _maps_of_all() -> Iterator[str]:
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            yield maps.read_text(encoding="utf-8", errors="replace")


class JobServer:
    """Serves one job of ``size`` ranks on ``host:port`` (port 0: a free one)."""

    def __init__(
        self,
        size: int,
        host: str = "127.0.0.1",
        port: int = 0,
        join_timeout: float = -1.0,
        secret: bytes | None = None,
    ) -> None:
        """Listen at once, so that the address is known before ranks are started.

        Args:
            size: number of ranks.
            host: address to listen on; empty for all addresses.
            port: TCP port; 0 lets the system choose.
            join_timeout: seconds to wait for all ranks; negative waits for ever.
            secret: what the ranks know; None: see ``job_secret``.

        Raises:
            RuntimeError: the address cannot be used.
        """
        self.size = size
        self.space_name = uuid.uuid4().hex[:16]
        self.failure: str | None = None
        self.failed_rank: int | None = None
        self.on_note: Callable[[str], object] = str
        """Called with every line that is also sent to a rank."""
        self._join_deadline = time.monotonic() + join_timeout if join_timeout >= 0 else None
        self._connections = Connections(secret, host, port, size)
        self._is_stopped = False
        self._roll = RollCall(size)
        self._space: PmiSpace | None = None
        self._members: dict[Peer, Member] = {}
        self._control: dict[int, Peer] = {}
        self._pmi: dict[Peer, int] = {}
        self._running: set[int] = set()
        self._leaving: set[int] = set()
        self._gone: set[int] = set()
        self._has_dismissed = False
        self._suspect: tuple[float, int, str] | None = None
        self._health = Health(silence=env.get_int(SILENCE_VARIABLE) or SILENCE_SECONDS)
        self._beat_seconds = 1.0 + size / 200  # one thread listens to thousands
        now = time.monotonic()
        self._last_tick, self._last_beat, self._last_check = now, now, now - 1.0
        self._last_missing = now

    @property
    def port(self) -> int:
        """The port ranks connect to."""
        return self._connections.port

    @property
    def has_started(self) -> bool:
        """Whether all ranks have joined."""
        return self._space is not None

    def start_thread(self) -> threading.Thread:
        """Serve in a daemon thread of this process."""
        thread = threading.Thread(target=self.serve, name="job-server", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Make ``serve`` return soon; ranks still connected go on without a server."""
        self._is_stopped = True
        self._connections.wake()

    def serve(self, check: Callable[[JobServer], str | None] | None = None) -> str | None:
        """Serve until every rank has left, one has failed, or ``stop``.

        Args:
            check: asked about once a second; a text it returns ends the job.

        Returns:
            The reason of failure, naming the rank; None if all ranks left in order.
        """
        try:
            while not self._is_stopped and self.failure is None and self._is_in_use():
                self._tick(check)
                for event in self._connections.poll(_TICK_SECONDS):
                    self._handle(event)
            self._connections.close_door()  # who comes now belongs to the next attempt
            if self.failure is not None:
                self._end_ranks()
            elif self._is_stopped:
                self._tell(self._members, "detach")
            remove_shared_memory(self.space_name)
        finally:
            self._connections.close()
        return self.failure

    def _is_in_use(self) -> bool:
        """False when all ranks are gone; MPICH says good-bye on its own connection last of all."""
        return len(self._gone) < self.size or bool(self._pmi)

    def joined_pids(self) -> set[int]:
        """Process ids of the local ranks that have connected."""
        return {member.wish["pid"] for member in self._members.values() if member.is_local}

    def silent_locals(self, seconds: float) -> set[int]:
        """Ranks of this host that have said nothing for so long."""
        now = time.monotonic()
        return {
            member.rank
            for member in self._members.values()
            if member.is_local and self._health.silence_of(member.rank, now) > seconds
        }

    def _fail(self, rank: int | None, reason: str) -> None:
        if self.failure is None:
            self.failed_rank, self.failure = rank, reason

    # --- time

    def _tick(self, check: Callable[[JobServer], str | None] | None) -> None:
        now = time.monotonic()
        pause, self._last_tick = now - self._last_tick, now
        if pause > _PAUSE_SECONDS:
            self._health.forgive(pause)
        if check is not None and now - self._last_check >= 1.0:
            self._last_check = now
            reason = check(self)
            if reason:
                self._fail(None, reason)
        if self._space is None:
            self._check_missing(now)
        elif not self._has_dismissed:
            self._check_health(now)

    def _check_missing(self, now: float) -> None:
        if self._join_deadline is not None and now > self._join_deadline:
            self._fail(
                None,
                f"{self._roll.missing()} did not connect in time; start all {self.size} workers "
                "or raise --cluster_time_out",
            )
        elif now - self._last_missing > _WAITING_SECONDS:
            self._last_missing = now
            self._note(f"still waiting for {self._roll.missing()}")
        for host in self._connections.take_refused():
            self._note(
                f"a process on {host} does not know the secret of this job; if it belongs to it, "
                f"set {VARIABLE} to the same text on every host"
            )

    def _check_health(self, now: float) -> None:
        if now - self._last_beat >= self._beat_seconds:
            self._last_beat = now
            self._tell(self._members, "beat")
        active = self._control.keys() - self._leaving
        for line in self._health.notes(active, now):
            self._note(line)
        verdict = self._health.failure(active, now)
        if verdict is not None:
            self._fail(*verdict)
        if self._suspect is not None and now > self._suspect[0]:
            self._judge_suspect(now)
        if self._leaving:
            self._check_deadlock(active)

    def _judge_suspect(self, now: float) -> None:
        """A rank could not communicate; if others are silent, that is why."""
        assert self._suspect is not None, "there is one to judge"
        _, rank, reason = self._suspect
        limit = _MISSED_BEATS * self._beat_seconds
        silent = [one for one in self._control if self._health.silence_of(one, now) > limit]
        if silent:
            seconds = min(self._health.silence_of(one, now) for one in silent)
            places = sorted({self._member(one).place for one in silent})
            self._fail(
                silent[0],
                f"{names(silent)} on {', '.join(places)} cannot be reached: nothing was heard for "
                f"{seconds:.0f} s, and {reason}",
            )
        self._fail(rank, reason)

    def _check_deadlock(self, remaining: set[int]) -> None:
        """Fail when every remaining rank is blocked: only those that have left could free them."""
        if min(map(self._health.blocked, remaining)) > _DEADLOCK_SECONDS:
            self._fail(
                min(self._leaving),
                f"{names(self._leaving)} ended while {names(remaining)} waited for communication",
            )

    def _note(self, text: str) -> None:
        """Say something where the user looks: here, and in the log of the first rank that hears."""
        self.on_note(text)
        now = time.monotonic()
        limit = _MISSED_BEATS * self._beat_seconds
        awake = [
            peer
            for peer, member in self._members.items()
            if self._space is None or self._health.silence_of(member.rank, now) < limit
        ]
        if awake:
            first = min(awake, key=lambda peer: self._members[peer].wish["rank"] or 0)
            self._connections.send(first, job_messages.write("note", text=text))

    # --- events

    def _handle(self, event: Event) -> None:
        if event.line is None:
            self._lose(event)
            return
        try:
            if event.peer in self._pmi:
                self._handle_pmi(event.peer, event.line)
            elif event.peer in self._members:
                self._hear(self._members[event.peer], job_messages.read(event.line, FROM_RANK))
            elif event.peer.is_open:
                self._receive(event.peer, job_messages.read(event.line, FROM_RANK))
        except ProtocolError as error:
            rank = self._rank_of(event.peer)
            if rank is not None:
                self._fail(rank, f"rank {rank} broke the start-up protocol: {error}")
            self._connections.drop(event.peer)

    def _rank_of(self, peer: Peer) -> int | None:
        member = self._members.get(peer)
        rank = self._pmi.get(peer, -1) if member is None else member.rank
        return rank if rank >= 0 else None

    def _member(self, rank: int) -> Member:
        return self._members[self._control[rank]]

    def _lose(self, event: Event) -> None:
        """A connection has ended; the death of a rank ends the job."""
        self._pmi.pop(event.peer, None)
        member = self._members.get(event.peer)
        if member is None:
            return
        if self._space is None:
            del self._members[event.peer]
            self._roll.present.remove(member)
            text = self._obituary(member, event, "before all ranks had connected")
            self._fail(member.wish["rank"], f"{text}; {self._roll.missing()} had not connected yet")
            return
        if not self._has_dismissed:
            self._fail(member.rank, self._obituary(member, event, "while the job was running"))
        self._gone.add(member.rank)
        del self._members[event.peer]

    def _obituary(self, member: Member, event: Event, when: str) -> str:
        if event.complaint:
            return f"{member.title} was dropped {when}: {event.complaint}"
        if not is_cut(event.error):
            return f"{member.title} died {when}"
        others = [one.rank for one in self._members.values() if one.host == member.host]
        who = names(others) if self._space is not None else member.title
        return f"{who} on {member.place} cannot be reached any more: the network is cut"

    def _receive(self, peer: Peer, message: Message) -> None:
        """The first message of a connection says what it is for."""
        operation = message["op"]
        if operation == "join":
            self._join(peer, message)
        elif operation == "pmi":
            self._open_pmi(peer, message["rank"])
        elif operation == "gone":
            if self._space is None:
                rank = message["rank"]
                who = "a process" if rank is None else f"rank {rank}"
                self._fail(rank, f"{who} on {message['name']} {message['reason']}")
            self._connections.drop(peer)
        else:
            raise ProtocolError(f"{operation} came before join")

    def _hear(self, member: Member, message: Message) -> None:
        """A message of a rank that has joined."""
        operation, rank = message["op"], member.rank
        if operation == "abort":
            self._abort(member, message)
        elif rank < 0 or operation in ("join", "pmi", "gone"):
            raise ProtocolError(f"{operation} came at the wrong time")
        elif operation == "beat":
            line = self._health.beat(
                rank,
                time.monotonic(),
                message["call"],
                message["iteration"],
                message["blocked"],
            )
            if line:
                self._note(line)
        elif operation == "running":
            self._running.add(rank)
        elif operation == "limits":
            self._health.timeout = message["timeout"]
        elif operation == "leave":
            self._leave(rank)

    def _abort(self, member: Member, message: Message) -> None:
        reason = f"rank {member.rank} failed: {message['reason']}"
        if member.rank < 0:
            self._fail(member.wish["rank"], message["reason"])
        elif not message["blames_peer"]:
            self._fail(member.rank, reason)
        elif self._suspect is None:
            self._suspect = (time.monotonic() + _GRACE_SECONDS, member.rank, reason)

    # --- start and end

    def _join(self, peer: Peer, wish: Message) -> None:
        address = peer.connection.getsockname()[0]
        member = Member(wish, peer.host, peer.is_local, address)
        if self._space is not None:
            reason = "the job on this port has already started; choose another --master_port"
            self._connections.send(peer, job_messages.write("refuse", reason=reason))
            return
        self._connections.settle(peer)
        self._members[peer] = member
        objection = self._roll.objection(member)
        if objection is not None:
            self._fail(None, objection)
            return
        self._roll.present.append(member)
        self._connections.send(peer, job_messages.write("wait"))
        if self._roll.is_complete:
            self._start()

    def _start(self) -> None:
        """Give every rank its number and open the PMI space."""
        members = self._roll.numbered()
        peers = {member.rank: peer for peer, member in self._members.items()}
        self._control = {rank: peers[rank] for rank in range(self.size)}
        hosts = [member.host for member in members]
        self._space = PmiSpace(self.size, self.space_name, process_mapping(hosts))
        self._health.start(self._control, time.monotonic())
        for rank, member in enumerate(members):
            start = job_messages.write(
                "start",
                rank=rank,
                size=self.size,
                local_rank=hosts[:rank].count(member.host),
                local_size=hosts.count(member.host),
                address=address_for(member, members),
                beat_seconds=self._beat_seconds,
            )
            self._connections.send(self._control[rank], start)

    def _open_pmi(self, peer: Peer, rank: int) -> None:
        owner = self._control.get(rank)
        if owner is None or rank in self._pmi.values() or owner.host != peer.host:
            raise ProtocolError(f"a PMI connection for rank {rank} came at the wrong time")
        self._connections.settle(peer)
        self._pmi[peer] = rank
        self._connections.send(peer, job_messages.write("pmi"))

    def _handle_pmi(self, peer: Peer, line: bytes) -> None:
        assert self._space is not None, "PMI connections open after the start"
        rank = self._pmi[peer]
        text = line.decode(errors="replace")
        command = parse_line(text)["cmd"]
        if len(self._running) == self.size and command not in _AFTER_START:
            raise ProtocolError(f"the PMI command {command!r} came after the start of MPI")
        if command == "abort":
            self._fail(rank, f"rank {rank} called MPI_Abort; see its log")
            return
        peers = {rank: peer for peer, rank in self._pmi.items()}
        for receiver, reply in self._space.handle(rank, text):
            if receiver in peers:
                self._connections.send(peers[receiver], reply.encode())

    def _leave(self, rank: int) -> None:
        """Let the ranks go when the last one leaves."""
        self._leaving.add(rank)
        if len(self._leaving) == self.size:
            self._has_dismissed = True
            self._tell(self._members, "finalize")

    def _end_ranks(self) -> None:
        """Tell everyone why, wait until they are gone, and end those of this host that stay."""
        self._tell(self._members, "stop", reason=self.failure, rank=self.failed_rank)
        deadline = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < deadline and any(peer.is_open for peer in self._members):
            self._connections.poll(_TICK_SECONDS)
        for peer, member in self._members.items():
            if peer.is_open and member.is_local:
                _kill_rank(member.wish["pid"], self.port)

    def _tell(self, peers: dict[Peer, Member], operation: str, **fields: object) -> None:
        data = job_messages.write(operation, **fields)
        for peer in list(peers):
            self._connections.send(peer, data)


def _kill_rank(pid: int, port: int) -> None:
    """End a process that does not hear, if it is really a rank of the job on this port."""
    try:
        process = psutil.Process(pid)
        if process.environ().get("MS_SCHED_PORT") == str(port):
            os.kill(pid, signal.SIGKILL)
    except (psutil.Error, OSError):
        return
