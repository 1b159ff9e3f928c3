# SPDX-License-Identifier: Apache-2.0
"""Sides of a comparison that take turns: one step of the one, one step of the other.

The tool starts every side as processes of its own and tells them when to train a step. A rank
that waits for its turn sleeps in a read from a socket, so it takes nothing from the side whose
turn it is. The tool itself holds the watch: a step lasts from the signal to the answer of the
slowest rank, whatever the side does in it.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WARM_UP = 3
START_SECONDS = 300.0
"""Longest wait for a side to start and to answer its first signal."""
PAUSE_SECONDS = 0.02
"""Between two turns: threads of the side before go to sleep."""


class Turn:
    """A rank's end of the line: waits for signals, answers with figures."""

    def __init__(self, port: int, rank: int) -> None:
        """Report to the tool that listens at ``port`` of this host."""
        self._line = socket.create_connection(("127.0.0.1", port)).makefile("rw")
        self._say({"rank": rank})

    def wait(self) -> None:
        """Sleep until the next step may begin; the process ends when no more is wanted."""
        if not self._line.readline():
            sys.exit(0)

    def answer(self, **figures: float) -> None:
        """Tell that a step is done."""
        self._say(
            {
                **figures,
                "peak_mib": peak_mib(),
                "file_mib": file_mib(),
                "cpu_seconds": time.process_time(),
            }
        )

    def _say(self, figures: dict[str, float]) -> None:
        self._line.write(json.dumps(figures) + "\n")
        self._line.flush()


def _status_mib(field: str) -> float | None:
    """A size of this process as Linux tells it; None where the system has no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found.group(1)) / 1024 if found else None


def file_mib() -> float:
    """Pages of libraries and other mapped files, which all ranks of a host have in common."""
    return _status_mib("RssFile") or 0.0


def peak_mib() -> float:
    """Largest resident set of this process so far."""
    peak = _status_mib("VmHWM")
    if peak is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Side:
    """The processes of one side; what they print goes to ``log``."""

    def __init__(self, name: str, ranks: int, log: Path) -> None:
        """Open the line that ``start``'s processes will report to."""
        self.name, self.ranks, self.log = name, ranks, log
        self.ready_seconds = 0.0
        self.seconds: list[float] = []
        self.answers: list[list[dict[str, float]]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []
        self._lines: list[Any] = []

    @property
    def port(self) -> int:
        """Where the ranks report."""
        return self._server.getsockname()[1]

    def start(self, *commands: Sequence[str]) -> None:
        """Run the commands (one launcher, or one command per rank) and wait for every rank."""
        started = time.monotonic()
        with self.log.open("ab") as log:
            for command in commands:
                self._processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        # A launcher gives each rank a session, and the kernel shares the cores
                        # between sessions: all sides must be alike.
                        start_new_session=True,
                    )
                )
        self._server.settimeout(0.5)
        deadline = time.monotonic() + START_SECONDS
        while len(self._sockets) < self.ranks:
            try:
                connection = self._server.accept()[0]
            except TimeoutError:
                if time.monotonic() > deadline or any(p.poll() for p in self._processes):
                    self._fail("did not start")
                continue
            connection.settimeout(START_SECONDS)
            self._sockets.append(connection)
            self._lines.append(connection.makefile("rw"))
            self._lines[-1].readline()
        self.ready_seconds = time.monotonic() - started

    def start_here(self, threads: int | None, flags: Sequence[str]) -> None:
        """Start this project's side (``here.py``); several ranks under mpiexec."""
        command = [sys.executable, str(HERE / "here.py"), str(self.port), *flags]
        if threads is not None:
            command = ["env", f"OMP_NUM_THREADS={threads}", *command]
        if self.ranks > 1:
            nearby = str(Path(sys.executable).parent)
            launcher = shutil.which("mpiexec", path=nearby) or shutil.which("mpiexec")
            if launcher is None:
                raise SystemExit('several ranks need mpiexec; pip install "mindspeed_ms[cpu]"')
            command = [launcher, "-n", str(self.ranks), *command]
        self.start(command)

    def step(self) -> None:
        """Let every rank train one step and note the time and the answers."""
        time.sleep(PAUSE_SECONDS)
        started = time.perf_counter()
        for line in self._lines:
            line.write("step\n")
            line.flush()
        try:
            answers = [json.loads(line.readline()) for line in self._lines]
        except (OSError, json.JSONDecodeError):
            self._fail("ended during a step")
        self.seconds.append(time.perf_counter() - started)
        self.answers.append(answers)

    def first_seconds(self) -> float:
        """From the start of the processes to the end of the first step."""
        return self.ready_seconds + self.seconds[0]

    def operations_per_second(self) -> float:
        """Of a step as the log counts them; 0 if the side does not tell."""
        return self.answers[-1][0].get("operations", 0.0) / self.median_seconds()

    def median_seconds(self) -> float:
        """Of the measured steps."""
        return statistics.median(self.seconds[WARM_UP:])

    def cpu_seconds(self) -> float:
        """Processor time from one answer to the next, of all ranks together (median)."""
        totals = [sum(rank["cpu_seconds"] for rank in answer) for answer in self.answers]
        return statistics.median(b - a for a, b in pairwise(totals[WARM_UP - 1 :]))

    def peak_mib(self) -> float:
        """Largest resident set, of the rank that had the largest."""
        return max(answer["peak_mib"] for answer in self.answers[-1])

    def private_mib(self) -> float:
        """The same without the pages of mapped files."""
        return max(answer["peak_mib"] - answer["file_mib"] for answer in self.answers[-1])

    def close(self) -> None:
        """End the processes."""
        for line, connection in zip(self._lines, self._sockets, strict=True):
            line.close()
            connection.close()
        self._server.close()
        for process in self._processes:
            if not self._sockets:
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20.0)
            process.kill()
            process.wait()

    def _fail(self, what: str) -> None:
        time.sleep(1.0)  # the last words of the process
        tail = self.log.read_text(errors="replace").splitlines()[-12:]
        raise SystemExit("\n".join([f"{self.name} {what}; its last lines:", *tail]))


def take_turns(sides: Sequence[Side], steps: int) -> None:
    """Warm up, then ``steps`` measured steps of every side; the one that begins alternates."""
    order = list(sides)
    for _ in range(WARM_UP + steps):
        for side in order:
            side.step()
        order.reverse()


def ratio(here: Side, other: Side) -> float:
    """Median over neighbouring steps of how many times faster ``here`` is."""
    pairs = zip(here.seconds[WARM_UP:], other.seconds[WARM_UP:], strict=True)
    return statistics.median(theirs / ours for ours, theirs in pairs)
