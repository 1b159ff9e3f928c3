"""A rank's side of the control connection described in ``job_server``."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mindspeed_ms.backend.job_server import enable_keepalive

_RETRY_SECONDS = 0.1
_ANSWER_SECONDS = 20.0
_ABORT_SECONDS = 2.0


@dataclass(frozen=True)
class Assignment:
    """Who this process is within the job."""

    rank: int
    size: int
    local_rank: int
    """Position among the ranks of this host."""
    local_size: int


def end_process(message: str, status: int = 1) -> NoReturn:
    """Write one line and end this process at once, whatever its threads are waiting for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.write(f"ERROR: {message}\n")
    sys.stderr.flush()
    os._exit(status)


def remove_mapped_segments() -> None:
    """Delete the names of the MPICH shared-memory segments this process has mapped.

    MPICH does so only when it is finalized. The ranks of this host keep what they have mapped.
    """
    maps = Path("/proc/self/maps")
    if maps.exists():
        for segment in set(re.findall(r"/dev/shm/mpich_shm_\w+", maps.read_text())):
            Path(segment).unlink(missing_ok=True)


class JobClient:
    """Keeps this rank registered with the job's server, and ends it when the job fails."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        """Connect, retrying while the server is not there yet.

        Args:
            host: address of the server.
            port: its port.
            timeout: seconds to keep trying; negative tries for ever.

        Raises:
            RuntimeError: the server could not be reached in time.
        """
        self._where = f"{host}:{port}"
        self._connection = self._connect(host, port, timeout)
        enable_keepalive(self._connection)
        self._buffer = b""
        self._dismissal = threading.Event()
        self._may_finalize = False
        self._is_watched = True
        self._is_aborting = False
        self._assignment: Assignment | None = None
        self._send_lock = threading.Lock()
        self.blocked_seconds: Callable[[], float] = float
        """How long the main thread has been inside one communication call; 0 outside."""
        # A forked child (a data loader) must not keep the connection of a dead parent open.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._is_watched = False
        self._connection.close()

    def _connect(self, host: str, port: int, timeout: float) -> socket.socket:
        deadline = time.monotonic() + timeout if timeout >= 0 else None
        while True:
            try:
                connection = socket.create_connection((host, port), timeout=10.0)
            except OSError as error:
                if deadline is not None and time.monotonic() > deadline:
                    raise RuntimeError(
                        f"no scheduler at {self._where} within {timeout:g} s ({error}); check "
                        "--master_addr, --master_port and scheduler.log on the master host"
                    ) from None
                time.sleep(_RETRY_SECONDS)
            else:
                connection.settimeout(None)
                return connection

    def join(self, size: int, rank: int | None, local_rank: int | None) -> Assignment:
        """Register with the server and wait until all ranks have.

        Args:
            size: number of ranks this process expects.
            rank: its number, or None to have one assigned.
            local_rank: its wish for an order among the unnumbered ranks of its host.

        Raises:
            RuntimeError: the server refused, the job failed meanwhile, or the peer is no server.
        """
        wish = {"op": "join", "size": size, "rank": rank, "local_rank": local_rank}
        self._send({**wish, "pid": os.getpid()})
        self._connection.settimeout(_ANSWER_SECONDS)
        answer = self._receive()
        if answer.get("op") == "wait":  # it is our server: from now on it keeps the time
            self._connection.settimeout(None)
            answer = self._receive()
        if answer.get("op") != "start":
            reason = answer.get("reason", "no scheduler of this job answers there; see its log")
            raise RuntimeError(f"cannot join the job at {self._where}: {reason}")
        answer.pop("op")
        self._assignment = Assignment(**answer)
        threading.Thread(target=self._watch, name="job-watch", daemon=True).start()
        return self._assignment

    def abort(self, reason: str) -> None:
        """Tell the server, and through it every rank, that this rank has failed."""
        self._is_aborting = True
        self._send({"op": "abort", "reason": reason})
        self._dismissal.wait(_ABORT_SECONDS)

    def leave(self) -> bool:
        """Announce the end of this rank and wait until all the others end as well.

        Returns:
            True if every rank is leaving now, so that MPI may be finalized.
        """
        self._send({"op": "leave"})
        if self._is_watched:
            self._dismissal.wait()
        if not self._may_finalize:
            remove_mapped_segments()
        return self._may_finalize

    def _watch(self) -> None:
        """Runs in a thread until the server says good-bye or is gone."""
        operation = None
        while operation not in ("finalize", "detach", "stop"):
            message = self._receive()
            operation = message.get("op")
            if self._is_aborting and operation in (None, "stop"):
                break
            if operation == "status":
                self._send({"op": "status", "blocked": self.blocked_seconds()})
            if operation == "stop":
                self._stop(str(message.get("reason")))
            if operation is None:
                self._stop(f"it lost the connection to the scheduler at {self._where}")
        self._may_finalize = operation == "finalize"
        self._is_watched = False
        self._dismissal.set()

    def _stop(self, reason: str) -> None:
        assert self._assignment is not None, "watching begins after the assignment"
        remove_mapped_segments()
        end_process(f"rank {self._assignment.rank} stops because {reason}")

    def _send(self, message: dict[str, Any]) -> None:
        try:
            with self._send_lock:
                self._connection.sendall((json.dumps(message) + "\n").encode())
        except OSError:
            return  # the watching thread notices that the server is gone

    def _receive(self) -> dict[str, Any]:
        """The next message; empty when the connection is closed or speaks something else."""
        while b"\n" not in self._buffer:
            try:
                received = self._connection.recv(1 << 16)
            except OSError:
                received = b""
            if not received:
                return {}
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            return {}
        return message if isinstance(message, dict) else {}
