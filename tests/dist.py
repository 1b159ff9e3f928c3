# SPDX-License-Identifier: Apache-2.0
"""``dist_run``: run a function on several CPU ranks and get every rank's result back.

Importing MindSpore costs each rank two seconds of a core, so ranks are kept: one pool of processes
per world size, in which tasks run one after another. Ranks wait in a blocking read, which costs
nothing. A pool that failed, or was too slow, is killed and a new one is started for the next task.
Ranks find each other through the project's own ``JobServer`` in this process, on a free port.
"""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest

from mindspeed_ms.backend.job_server import JobServer

REPOSITORY = Path(__file__).resolve().parents[1]
WORKER_SCRIPT = Path(__file__).with_name("dist_worker.py")

START_TIMEOUT_SECONDS = 120.0
GRACE_SECONDS = 1.0
"""How long the other ranks may take to report after the first one has failed."""

DUMP_SECONDS = 0.3
"""What a silent rank gets to write its stack."""

LARGE_POOL = 3
"""From this number of ranks on, only one pool is kept: each rank needs about half a gigabyte."""

MAX_LOG_LINES = 30


class RankFailure(AssertionError):
    """A rank raised, died or was too slow; the text holds its traceback."""


@dataclass
class Task:
    """What a rank is asked to run."""

    module: str
    file: str
    function: str
    params: dict
    import_path: list[str]


def describe(worker, params) -> Task:
    """The task for a module-level function."""
    if worker.__qualname__ != worker.__name__:
        raise ValueError(
            f"dist_run got {worker.__qualname__}; ranks import the worker by name: define it at "
            "module level"
        )
    file = inspect.getsourcefile(worker)
    return Task(worker.__module__, str(file), worker.__name__, params, list(sys.path))


class RankPool:
    """The processes of one world size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.logs = Path(tempfile.mkdtemp(prefix=f"dist_run_{size}_"))
        self.server = JobServer(size)
        self.server_thread = self.server.start_thread()
        self.processes: list[subprocess.Popen] = []
        self.connections: list[Connection] = []
        for rank in range(size):
            self._start_rank(rank)
        self.is_started = False

    def _start_rank(self, rank: int) -> None:
        mine, theirs = Pipe()
        threads = str(max(1, len(os.sched_getaffinity(0)) // self.size))
        variables = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PMI", "MPI", "MS_"))},
            "MS_ROLE": "MS_WORKER",
            "MS_WORKER_NUM": str(self.size),
            "MS_SCHED_HOST": "127.0.0.1",
            "MS_SCHED_PORT": str(self.server.port),
            "MS_NODE_ID": str(rank),
            "GLOG_v": "3",
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "passive",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }
        with self.log_of(rank).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, str(WORKER_SCRIPT), str(theirs.fileno())],
                env=variables,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        theirs.close()
        self.processes.append(process)
        self.connections.append(mine)

    def log_of(self, rank: int) -> Path:
        return self.logs / f"rank_{rank}.log"

    def run(self, task: Task, timeout: float) -> list:
        """Results by rank.

        Raises:
            RankFailure: with the traceback of the rank that failed first.
        """
        __tracebackhide__ = True
        if not self.is_started:
            self._collect(START_TIMEOUT_SECONDS, "the ranks to start")
            self.is_started = True
        try:
            message = pickle.dumps(task)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"the parameters of dist_run must be picklable: {error}") from error
        for connection in self.connections:
            connection.send_bytes(message)
        return self._collect(timeout, f"{task.function}()")

    def _collect(self, timeout: float, what: str) -> list:
        __tracebackhide__ = True
        deadline = time.monotonic() + timeout
        waiting = {connection: rank for rank, connection in enumerate(self.connections)}
        results = [None] * self.size
        failures: list[tuple[int, str]] = []
        skips: list[str] = []
        while waiting:
            ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = waiting.pop(connection)
                kind, value = self._receive(connection, rank)
                if kind == "result":
                    results[rank] = value
                elif kind == "skip":
                    skips.append(value)
                else:
                    failures.append((rank, value))
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if failures or waiting:
            self._dump_stacks(list(waiting.values()))
            raise RankFailure(self._report(what, timeout, failures, sorted(waiting.values())))
        if skips:
            pytest.skip(skips[0])
        return results

    def _dump_stacks(self, ranks: list[int]) -> None:
        """Make ranks that did not answer write to their log where they are."""
        for rank in ranks:
            if self.processes[rank].poll() is None:
                os.kill(self.processes[rank].pid, signal.SIGUSR1)
        time.sleep(DUMP_SECONDS if ranks else 0.0)

    def _receive(self, connection: Connection, rank: int) -> tuple:
        try:
            return connection.recv()
        except (EOFError, OSError):
            self.processes[rank].wait(timeout=5)
            return "died", f"it ended with status {self.processes[rank].returncode}"

    def _report(self, what: str, timeout: float, failures: list, silent: list[int]) -> str:
        if not failures:
            first, reason = silent[0], f"nothing heard within {timeout:g} s"
        else:
            # Ranks that were stopped because of another one report too; the server knows better.
            named = [item for item in failures if item[0] == self.server.failed_rank]
            first, reason = (named or failures)[0]
        others = [
            f"rank {rank}: {text.strip().splitlines()[-1]}"
            for rank, text in failures
            if rank != first
        ]
        others += [f"rank {rank}: no answer" for rank in silent if rank != first]
        log = self.log_of(first).read_text(errors="replace").splitlines()[-MAX_LOG_LINES:]
        lines = [
            f"{what} on {self.size} ranks: rank {first} failed",
            reason.rstrip(),
            *(["others:", *others] if others else []),
            f"log of rank {first} ({self.logs}):",
            *log,
        ]
        return "\n".join(lines)

    def kill(self) -> None:
        """End the ranks and everything they have started."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.processes:
            process.wait()
        for connection in self.connections:
            connection.close()
        self.server.stop()
        self.server_thread.join(timeout=10.0)


class RankPools:
    """The pools of a test session."""

    def __init__(self) -> None:
        self._pools: dict[int, RankPool] = {}

    def run(self, worker, ranks: int, timeout: float, params: dict) -> list:
        __tracebackhide__ = True
        task = describe(worker, params)
        pool = self._pool(ranks)
        try:
            return pool.run(task, timeout)
        except (RankFailure, KeyboardInterrupt):
            del self._pools[ranks]
            pool.kill()
            raise

    def _pool(self, ranks: int) -> RankPool:
        if ranks not in self._pools:
            if ranks >= LARGE_POOL:
                for size in [size for size in self._pools if size >= LARGE_POOL]:
                    self._pools.pop(size).kill()
            self._pools[ranks] = RankPool(ranks)
        return self._pools[ranks]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.kill()
        self._pools.clear()
