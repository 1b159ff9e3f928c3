# SPDX-License-Identifier: Apache-2.0
"""The scheduler's process of a job on CPU: where it listens, what it watches, how it is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil

from mindspeed_ms.backend import addresses, env, launcher
from mindspeed_ms.backend.job_client import end_process, note_verdict
from mindspeed_ms.backend.job_server import JobServer

MODULE = "mindspeed_ms.backend.torchrun.scheduler"
_LOOPBACK = "127.0.0.1"
_SILENT_SECONDS = 5.0
_STARTING_SECONDS = 4.0
"""A launcher starts its workers this soon after the scheduler."""


_started: list[subprocess.Popen] = []
"""The scheduler that this process has started, if it has."""


def meeting_point(host: str, size: int) -> tuple[str, str]:
    """(address to listen on, address for ranks of this host) of a job.

    A job of one host stays inside it. Where the master's name stands for the loopback interface on
    the master itself (Debian's 127.0.1.1), the others need it to listen on all addresses.
    """
    parent = launcher.find()
    local_ranks = None if parent is None else parent.local_ranks
    if local_ranks == size:
        return _LOOPBACK, _LOOPBACK
    if not addresses.is_loopback(host):
        return host, host
    has_others = local_ranks is not None and local_ranks < size
    return ("" if has_others else _LOOPBACK), _LOOPBACK


def msrun_serves(host: str) -> bool:
    """Whether ``msrun`` starts the scheduler of an address here, and before the workers.

    It takes Debian's 127.0.1.1 for another host's.
    """
    return host == _LOOPBACK or (addresses.is_own(host) and not addresses.is_loopback(host))


def serve_and_exit(size: int, host: str, port: int, timeout: float) -> NoReturn:
    """Serve the job, then end this process."""
    server = JobServer(size, meeting_point(host, size)[0], port, timeout)
    server.on_note = lambda text: sys.stderr.write(f"WARNING: {text}\n")
    watch, interrupts = WorkerWatch(), list[int]()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))

    def check(server: JobServer) -> str | None:
        if interrupts:
            return "the scheduler was interrupted from the keyboard (SIGINT)"
        return watch.check(server)

    failure = server.serve(check)
    launcher.end_readers()
    if failure is not None:
        note_verdict(server.failed_rank, failure)
        end_process(f"the job ends because {failure}")
    raise SystemExit(0)


def start_process(local_ranks: int | None = None) -> None:
    """Start a scheduler where no launcher does; the job's variables are those of this process.

    Args:
        local_ranks: ranks on this host, if known.
    """
    variables = {
        **os.environ,
        "MS_ROLE": "MS_SCHED",
        launcher.PID_VARIABLE: str(os.getpid()),
        "LOCAL_WORLD_SIZE": "" if local_ranks is None else str(local_ranks),
        "PYTHONPATH": os.pathsep.join(package_path()),
    }
    _started.append(subprocess.Popen([sys.executable, "-m", MODULE], env=variables))


def package_path() -> Iterator[str]:
    """Folders that another Python needs to find this package where this one did."""
    yield str(Path(__file__).resolve().parents[2])
    if env.get("PYTHONPATH"):
        yield env.get("PYTHONPATH") or ""


def has_sibling() -> bool:
    """Whether the launcher of this process has a scheduler."""
    parent = psutil.Process().parent()
    return parent is not None and any(
        variables.get("MS_ROLE") == "MS_SCHED" for variables in children_of(parent).values()
    )


class WorkerWatch:
    """Notices the end of the launcher, and of processes of this host that have not connected.

    Args:
        host: in a worker, the scheduler's address.
        port: its port.
    """

    def __init__(self, host: str | None = None, port: int = 0) -> None:
        parent = launcher.find()
        self._parent = psutil.Process().parent()
        self._launcher = launcher.watched()
        self._workers: dict[int, str] = {}
        self._expects_workers = parent is not None and parent.is_msrun and parent.local_ranks != 0
        is_started = (parent is not None and parent.is_msrun) or launcher.is_orphan()
        self._needs_scheduler = host is not None and is_started and msrun_serves(host)
        self._port = str(port)
        self._num_without = 0

    def check(self, server: JobServer) -> str | None:
        """In the scheduler: what ends the job, if anything does (see ``JobServer.serve``)."""
        if self._launcher is not None and self._launcher.has_ended:
            launcher.end_readers()
            text = launcher.described(self._launcher)
            # Ranks that have begun notice it too, and may save before they end.
            silent = server.silent_locals(_SILENT_SECONDS) if server.has_started else {-1}
            return text if silent else None
        if server.has_started:
            return None
        joined = server.joined_pids()
        lost = self.lost(joined)
        age = time.time() - psutil.Process().create_time()
        has_none = self._expects_workers and not self._workers and not joined
        if lost is None and has_none and age > _STARTING_SECONDS:
            return "every rank of this host ended before it had connected; see the workers' logs"
        return lost

    def lost(self, joined: set[int] | None = None) -> str | None:
        """The first process of this host that is gone before the job could start."""
        if self._parent is None:
            return None
        children = children_of(self._parent)
        workers = {
            pid: variables.get("MS_NODE_ID", "(unnumbered)")
            for pid, variables in children.items()
            if variables.get("MS_ROLE") == "MS_WORKER"
        }
        for pid, rank in self._workers.items():
            if pid not in workers and pid not in (joined or ()):
                return f"rank {rank} (pid {pid}) ended before it had connected; see its log"
        self._workers = workers
        is_missing = self._needs_scheduler and not self._has_scheduler(children)
        self._num_without = self._num_without + 1 if is_missing else 0
        if self._num_without > 1 or any(process.poll() is not None for process in _started):
            return "the scheduler of this host has ended; see scheduler.log"
        return None

    def _has_scheduler(self, children: dict[int, dict[str, str]]) -> bool:
        if any(variables.get("MS_ROLE") == "MS_SCHED" for variables in children.values()):
            return True
        return launcher.is_orphan() and any(
            one.info["environ"]["MS_SCHED_PORT"] == self._port
            for one in psutil.process_iter(["environ"])
            if (one.info["environ"] or {}).get("MS_ROLE") == "MS_SCHED"
        )


def children_of(parent: psutil.Process) -> dict[int, dict[str, str]]:
    """Environment of the living children of a process, by process id."""
    found: dict[int, dict[str, str]] = {}
    try:
        children = parent.children()
    except psutil.Error:
        return found
    for child in children:
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                found[child.pid] = child.environ()
        except psutil.Error:
            continue
    return found
