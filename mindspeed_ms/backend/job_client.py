# SPDX-License-Identifier: Apache-2.0
"""A rank's side of the control connection described in ``job_server``."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mindspeed_ms.backend import env, job_messages, job_secret, launcher
from mindspeed_ms.backend.job_connections import is_cut, tune
from mindspeed_ms.backend.job_health import SILENCE_SECONDS, SILENCE_VARIABLE, TIMEOUT_SECONDS
from mindspeed_ms.backend.job_messages import FROM_SERVER, MAX_LINE, Message, ProtocolError
from mindspeed_ms.backend.mapped_files import mapped_files
from mindspeed_ms.backend.progress import here

logger = logging.getLogger(__name__)

STATUS_VARIABLE = "MINDSPEED_MS_EXIT_STATUS"
VERDICT_VARIABLE = "MINDSPEED_MS_VERDICT"
"""File in which a launcher wants to find which rank failed, and why."""

_RETRY_SECONDS = 0.1
_CHECK_SECONDS = 1.0
_TELL_RETRY_SECONDS = 20.0
_ANSWER_SECONDS = 20.0
_SEND_SECONDS = 10.0
_ABORT_SECONDS = 2.0
_JUDGE_SECONDS = 5.0
"""What the server needs at most to find out whose fault a failed communication is."""
_PAUSE_SECONDS = 5.0
_SILENCE = "silence"
"""What ``_next`` answers instead of a message when none has come in time."""


@dataclass(frozen=True)
class Assignment:
    """Who this process is within the job."""

    rank: int
    size: int
    local_rank: int
    """Position among the ranks of this host."""
    local_size: int
    address: str = ""
    """This host's address as the other hosts see it; empty if there are none."""


class JobEndedError(RuntimeError):
    """The job has ended before it could start, by no fault of this process."""


class _LostError(Exception):
    """A connection ended before it had served its purpose; another one may do better."""


def end_process(message: str, status: int = 1) -> NoReturn:
    """Write one line and end this process at once, whatever its threads are waiting for.

    A status with which the script wanted to end goes before (``torchrun.worker`` notes it).
    """
    launcher.end_readers()
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.write(f"ERROR: {message}\n")
        sys.stderr.flush()
    os._exit(env.get_int(STATUS_VARIABLE) or status)


def note_verdict(rank: int | None, reason: str) -> None:
    """Leave for the launcher which rank failed first; the first line counts."""
    path = env.get(VERDICT_VARIABLE)
    if path and not has_verdict():
        line = f"{-1 if rank is None else rank} {' '.join(reason.split())}\n"
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_WRONLY | os.O_APPEND)  # gone with its launcher, it stays so
            with os.fdopen(handle, "wb", buffering=0) as file:
                file.write(line.encode())  # in one piece: several may write at once


def has_verdict() -> bool:
    """Whether a process of this host has left such a note."""
    try:
        return os.path.getsize(env.get(VERDICT_VARIABLE) or "") > 0
    except OSError:
        return False


def remove_mapped_segments() -> None:
    """Delete the names of the MPICH shared-memory segments this process has mapped.

    MPICH does so only when it is finalized. The ranks of this host keep what they have mapped.
    """
    for path in mapped_files():
        if segment := re.match(r"/dev/shm/mpich_shm_\w+", path):
            Path(segment.group()).unlink(missing_ok=True)


def report_gone(
    host: str,
    port: int,
    rank: int | None,
    reason: str,
    patience: float = 0.0,
    is_known: Callable[[], bool] = lambda: False,
) -> None:
    """Tell the scheduler, if there is one, that a process of the job ends and will not join.

    Args:
        host: address of the scheduler.
        port: its port.
        rank: of the process, if it has one.
        reason: what the scheduler says after the rank's name.
        patience: seconds to wait for a scheduler that is still starting.
        is_known: whether the job has ended, so that no scheduler will come.
    """
    deadline = time.monotonic() + patience
    message = job_messages.write("gone", rank=rank, name=socket.gethostname(), reason=reason)
    while True:
        try:
            with _open(host, port, job_secret.job_secret(port)) as connection:
                connection.sendall(message)
                connection.recv(1)  # the server has read it when it closes
            return
        except RuntimeError:
            return
        except (OSError, _LostError):
            if time.monotonic() > deadline or is_known():
                return
            time.sleep(_RETRY_SECONDS)


def _open(host: str, port: int, secret: bytes) -> socket.socket:
    """A connection on which both sides have proved to be of the job.

    Raises:
        OSError: there is nobody.
        _LostError: it ended meanwhile.
        RuntimeError: somebody else is there, or a job with another secret.
    """
    connection = socket.create_connection((host, port), timeout=10.0)
    try:
        if connection.getsockname() == connection.getpeername():
            raise _LostError(
                "nobody listens"
            )  # our own port was drawn: we are talking to ourselves
        connection.settimeout(_ANSWER_SECONDS)
        _prove(connection, f"{host}:{port}", secret)
        connection.settimeout(_SEND_SECONDS)
        tune(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prove(connection: socket.socket, where: str, secret: bytes) -> None:
    magic = job_secret.MAGIC
    number = _receive(connection, len(magic) + job_secret.NUMBER_BYTES, magic)[len(magic) :]
    if not number:
        raise RuntimeError(
            f"no scheduler of this job answers at {where}, but another program; see the log of "
            "the scheduler, or choose another --master_port"
        )
    own = job_secret.new_number()
    try:
        connection.sendall(job_secret.client_proof(secret, number, own))
    except OSError as error:
        raise _LostError(str(error)) from None
    answer = _receive(connection, len(job_secret.REFUSED))
    if not job_secret.check_server(secret, number, own, answer):
        raise RuntimeError(
            f"the job at {where} has another secret than this process: it is another job or "
            f"another user's, or {job_secret.VARIABLE} differs; set it to the same text in every "
            "shell that starts a part of the job"
        )


def _receive(connection: socket.socket, count: int, prefix: bytes = b"") -> bytes:
    """So many bytes; nothing if they do not begin with the prefix."""
    data = b""
    while len(data) < count:
        try:
            part = connection.recv(count - len(data))
        except OSError as error:
            raise _LostError(str(error)) from None
        if not part:
            raise _LostError("the connection was closed")
        data += part
        if data[: len(prefix)] != prefix[: len(data)]:
            return b""
    return data


class JobClient:
    """Keeps this rank registered with the job's server, and ends it when the job fails."""

    def __init__(
        self,
        host: str,
        port: int,
        timeout: float,
        secret: bytes | None = None,
        check: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Connect, retrying while the server is not there yet.

        Args:
            host: address of the server.
            port: its port.
            timeout: seconds to keep trying; negative tries for ever.
            secret: what all processes of the job know; None: see ``job_secret``.
            check: asked every second or so until the job starts; a text it returns ends the wait.

        Raises:
            JobEndedError: what ``check`` said.
            RuntimeError: the server could not be reached in time, or is none of this job.
        """
        self._host, self._port = host, port
        self._where = f"{host}:{port}"
        self._secret = job_secret.job_secret(port) if secret is None else secret
        self._deadline = time.monotonic() + timeout if timeout >= 0 else None
        self._timeout = timeout
        self._check = check
        self._connection = self._connect()
        self._buffer = b""
        self._end: OSError | None = None
        """Why the connection is over, if not because the server closed it."""
        self._dismissal = threading.Event()
        self._may_finalize = False
        self._is_watched = True
        self._is_aborting = False
        self._stop_reason: str | None = None
        self._assignment: Assignment | None = None
        self._beat_seconds = 1.0
        self._heard = time.monotonic()
        self._silence = float(env.get_int(SILENCE_VARIABLE) or SILENCE_SECONDS)
        self._limit = TIMEOUT_SECONDS
        self._send_lock = threading.Lock()
        self.blocked_seconds: Callable[[], float] = float
        """How long the main thread has been inside one communication call; 0 outside."""
        # A forked child (a data loader) must not keep the connection of a dead parent open.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._is_watched = False
        self._connection.close()

    def _connect(self) -> socket.socket:
        told = checked = time.monotonic()
        while True:
            try:
                return _open(self._host, self._port, self._secret)
            except (OSError, _LostError) as error:
                now = time.monotonic()
                if self._deadline is not None and now > self._deadline:
                    raise RuntimeError(
                        f"no scheduler at {self._where} within {self._timeout:g} s ({error}); "
                        "check --master_addr, --master_port and scheduler.log on the master host"
                    ) from None
                if now - told > _TELL_RETRY_SECONDS:
                    told = now
                    logger.warning("waiting for the scheduler at %s (%s)", self._where, error)
                if now - checked > _CHECK_SECONDS:
                    checked = now
                    reason = self._check()
                    if reason:
                        raise JobEndedError(reason) from None
                time.sleep(_RETRY_SECONDS)

    def join(self, size: int, rank: int | None, local_rank: int | None) -> Assignment:
        """Register with the server and wait until all ranks have.

        Args:
            size: number of ranks this process expects.
            rank: its number, or None to have one assigned.
            local_rank: its wish for an order among the unnumbered ranks of its host.

        Raises:
            JobEndedError: the job failed meanwhile.
            RuntimeError: the server refused this process.
        """
        wish = {"size": size, "rank": rank, "local_rank": local_rank, "pid": os.getpid()}
        answer: Message = {}
        while not answer:
            self._send("join", **wish, name=socket.gethostname())
            answer = self._next(_ANSWER_SECONDS)
            if not answer:  # the server was leaving, or too busy with others
                self._connection.close()
                self._connection, self._buffer = self._connect(), b""
        while answer["op"] in ("wait", "note", _SILENCE):
            if answer["op"] == "note":
                logger.warning("%s", answer["text"])
            reason = self._check()
            if reason:
                self._send("abort", reason=reason, blames_peer=False)
                answer = {"op": "stop", "reason": reason}
            else:
                lost = {"op": "stop", "reason": self._how_it_was_lost()}
                answer = self._next(_CHECK_SECONDS) or lost
        if answer["op"] == "stop":
            raise JobEndedError(answer["reason"])
        if answer["op"] != "start":
            reason = answer.get("reason", f"it said {answer['op']}")
            raise RuntimeError(f"cannot join the job at {self._where}: {reason}")
        del answer["op"]
        self._beat_seconds = float(answer.pop("beat_seconds"))
        self._assignment = Assignment(**answer)
        self._heard = time.monotonic()
        threading.Thread(target=self._watch, name="job-watch", daemon=True).start()
        return self._assignment

    def open_pmi(self) -> int:
        """A file descriptor on which MPICH may speak to the server as this rank.

        Raises:
            RuntimeError: the server does not answer.
        """
        assert self._assignment is not None, "joining comes first"
        connection = self._connect()
        connection.sendall(job_messages.write("pmi", rank=self._assignment.rank))
        try:
            answer = _receive(connection, len(job_messages.write("pmi")))
        except _LostError as error:
            raise RuntimeError(
                f"the scheduler at {self._where} does not start MPI ({error})"
            ) from None
        assert answer == job_messages.write("pmi"), "a proven server says nothing else here"
        connection.settimeout(None)
        return connection.detach()

    def tell_running(self) -> None:
        """MPI is up on this rank."""
        self._send("running")

    def set_limit(self, seconds: float) -> None:
        """How long a rank may be silent, or wait for the others, before the job ends."""
        self._limit = seconds
        self._send("limits", timeout=seconds)

    def abort(self, reason: str, blames_peer: bool = False) -> str | None:
        """Tell the server, and through it every rank, that this rank has failed.

        Args:
            reason: one line.
            blames_peer: this rank could not communicate, so another one is likely to have failed.

        Returns:
            What the server says has failed; None if it does not answer.
        """
        self._is_aborting = True
        self._send("abort", reason=reason, blames_peer=blames_peer)
        self._dismissal.wait(_JUDGE_SECONDS if blames_peer else _ABORT_SECONDS)
        return self._stop_reason

    def leave(self) -> bool:
        """Announce the end of this rank and wait until all the others end as well.

        Returns:
            True if every rank is leaving now, so that MPI may be finalized.
        """
        self._send("leave")
        if self._is_watched:
            self._dismissal.wait()
        if not self._may_finalize:
            remove_mapped_segments()
        return self._may_finalize

    def silence_of_server(self) -> float:
        """Seconds since the server has spoken."""
        return time.monotonic() - self._heard

    def _watch(self) -> None:
        """Runs in a thread until the server says good-bye or is gone."""
        operation, sent = _SILENCE, 0.0
        looked = time.monotonic()
        is_told = False
        while operation not in ("finalize", "detach", "stop"):
            message = self._next(self._beat_seconds)
            operation = message.get("op", "stop")
            now = time.monotonic()
            if now - looked > self._beat_seconds + _PAUSE_SECONDS:
                self._heard += now - looked  # this process itself stood still
            looked = now
            if operation != _SILENCE:
                self._heard, is_told = now, False
            if operation == "note":
                logger.warning("%s", message["text"])
            if operation == "stop":
                self._stop(message.get("reason", self._how_it_was_lost()), message.get("rank"))
            if now - sent >= self._beat_seconds:
                sent = now
                blocked = round(self.blocked_seconds(), 3)
                self._send("beat", call=here.call, iteration=here.iteration, blocked=blocked)
            is_told = self._check_server(now - self._heard, is_told)
        self._may_finalize = operation == "finalize"
        self._is_watched = False
        self._dismissal.set()

    def _check_server(self, pause: float, is_told: bool) -> bool:
        text = f"the scheduler at {self._where} has not answered for {pause:.0f} s"
        if pause > self._limit:
            launcher.end_scheduler()
            self._stop(text, None)
        if pause > self._silence and not is_told:
            logger.warning("%s", text)
            return True
        return is_told

    def _how_it_was_lost(self) -> str:
        if is_cut(self._end):
            return f"the scheduler at {self._where} cannot be reached any more: the network is cut"
        return f"it lost the connection to the scheduler at {self._where}"

    def _stop(self, reason: str, failed_rank: int | None) -> None:
        """End this process, unless it is ending already and only wants to know the reason."""
        if self._is_aborting:
            self._stop_reason = reason
            return
        assert self._assignment is not None, "watching begins after the assignment"
        note_verdict(failed_rank, reason)
        remove_mapped_segments()
        end_process(f"rank {self._assignment.rank} stops because {reason}")

    def _send(self, operation: str, **fields: object) -> None:
        try:
            with self._send_lock:
                self._connection.sendall(job_messages.write(operation, **fields))
        except OSError:
            return  # the watching thread notices that the server is gone

    def _next(self, seconds: float) -> Message:
        """The next message; {} when the connection is over, ``_SILENCE`` when none came in time."""
        while b"\n" not in self._buffer:
            try:
                poll = select.poll()  # select() refuses file numbers above 1023
                poll.register(self._connection, select.POLLIN)
                if not poll.poll(1000 * seconds):
                    return {"op": _SILENCE}
                received = self._connection.recv(MAX_LINE)
            except (OSError, ValueError) as error:  # ValueError: closed in a forked child
                self._end = error if isinstance(error, OSError) else None
                return {}
            if not received or len(self._buffer) > MAX_LINE:
                return {}
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return job_messages.read(line, FROM_SERVER)
        except ProtocolError:
            return {}
