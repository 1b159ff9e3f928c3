# SPDX-License-Identifier: Apache-2.0
"""The processes of one host: scheduler and ranks, from their start until the last one has ended.

They are started directly, with the variables of MindSpore's dynamic cluster (those ``msrun`` sets),
so their exit statuses are known, and they learn from the kernel that the launcher has died.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

from mindspeed_ms.backend.job_client import VERDICT_VARIABLE
from mindspeed_ms.backend.parent import tie_to

_POLL_SECONDS = 0.05
_SHOW_SECONDS = 0.2
_GRACE_SECONDS = 8.0
"""After a failure the other processes end by themselves within about four seconds."""
LAST_LINES = 20


@dataclass(frozen=True)
class Command:
    """A process to start."""

    title: str
    """For messages: ``rank 3`` or ``the scheduler``."""
    words: Sequence[str]
    variables: Mapping[str, str]
    log: Path | None = None
    """Where its output goes; None: to the launcher's own."""
    dies_with_launcher: bool = True
    """It gets SIGTERM when the launcher dies. The scheduler stays until the ranks have ended."""


@dataclass(frozen=True)
class Outcome:
    """How the processes of this host ended."""

    status: int
    """0, or the exit status of the rank that failed first, as a shell would say it."""
    reason: str = ""
    log: Path | None = None
    """That of the rank that failed first."""


def shell_status(code: int) -> int:
    """The exit status of a process as a shell says it: 128 and the signal for a killed one."""
    return code if code >= 0 else 128 - code


class Verdict:
    """What scheduler and ranks note for the launcher: who failed first, and why.

    A file without a name, where the system has that: it goes with the launcher, however that ends.

    Attributes:
        path: where processes of this host write to; see ``job_client.note_verdict``.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self._file: IO[bytes] = os.fdopen(os.memfd_create("verdict"), "rb")
            self.path = Path(f"/proc/{os.getpid()}/fd/{self._file.fileno()}")
        else:
            self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115  (closed by close)
            self.path = Path(self._file.name)

    def is_known(self) -> bool:
        """Whether anybody has noted anything."""
        return os.fstat(self._file.fileno()).st_size > 0

    def read(self) -> tuple[int, str]:
        """(rank that failed first or -1, why)."""
        self._file.seek(0)
        number, _, reason = self._file.readline().decode(errors="replace").partition(" ")
        try:
            return int(number), reason.strip()
        except ValueError:
            return -1, ""

    def close(self) -> None:
        """Nothing is noted any more."""
        self._file.close()


class Processes:
    """Starts the processes of one attempt, and waits for them.

    Args:
        ranks: what to start.
        scheduler: what to start first, on the host that has it.
        numbers: global rank of each of ``ranks``, where they are known before the start.
        shown: positions of ranks whose logs are copied to the console; None: all.
        on_failure: called in a thread with the first position that fails, its status, and a
            function that tells whether the job is known to have ended.
    """

    def __init__(
        self,
        ranks: Sequence[Command],
        scheduler: Command | None = None,
        numbers: Sequence[int] | None = None,
        shown: Sequence[int] | None = None,
        on_failure: Callable[[int, int, Callable[[], bool]], None] | None = None,
    ) -> None:
        self._commands, self._numbers = ranks, numbers
        self._on_failure = on_failure
        self._told: threading.Thread | None = None
        self._ended: dict[int, int] = {}
        """Position -> status, in the order in which they ended."""
        self._reader: LogReader | None = None
        self._verdict = Verdict()
        self._scheduler_command = scheduler
        self._scheduler = None if scheduler is None else self._start(scheduler)
        self._ranks = [self._start(command) for command in ranks]
        logs = [command.log for command in ranks if command.log is not None]
        if logs:
            picked = [log for at, log in enumerate(logs) if shown is None or at in shown]
            self._reader = LogReader(picked, sys.stdout)

    def _start(self, command: Command) -> subprocess.Popen:
        me = os.getpid()
        output = None if command.log is None else command.log.open("wb")
        process = subprocess.Popen(
            command.words,
            env={**command.variables, VERDICT_VARIABLE: str(self._verdict.path)},
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=command.log is not None,
            preexec_fn=tie_to(me) if command.dies_with_launcher else None,
        )
        if output is not None:
            output.close()
        return process

    def signal_ranks(self, number: int) -> None:
        """Send a signal to every rank that is still there."""
        for process in self._ranks:
            if process.poll() is None:
                process.send_signal(number)

    def kill(self) -> None:
        """End everything at once, with what the ranks have started."""
        for command, process in self._all():
            if command.log is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            elif process.poll() is None:
                process.kill()

    def _all(self) -> list[tuple[Command, subprocess.Popen]]:
        pairs = list(zip(self._commands, self._ranks, strict=True))
        if self._scheduler is not None and self._scheduler_command is not None:
            pairs.append((self._scheduler_command, self._scheduler))
        return pairs

    def wait(self) -> Outcome:
        """Wait until every process has ended; some time after a failure, end those that stay."""
        deadline = None
        while len(self._ended) < len(self._ranks):
            time.sleep(_POLL_SECONDS)
            for position, process in enumerate(self._ranks):
                if position not in self._ended and process.poll() is not None:
                    self._ended[position] = process.returncode
            failed = [position for position, code in self._ended.items() if code]
            if (failed or self._scheduler_failed()) and deadline is None:
                deadline = time.monotonic() + _GRACE_SECONDS
                if failed and self._on_failure is not None and not self._verdict.is_known():
                    status = shell_status(self._ended[failed[0]])
                    first = (failed[0], status, self._verdict.is_known)
                    self._told = threading.Thread(target=self._on_failure, args=first, daemon=True)
                    self._told.start()
            if deadline is not None and time.monotonic() > deadline:
                self.kill()
        self._end_scheduler()
        outcome = self._outcome()
        if outcome.status:
            self.kill()  # whatever dead ranks have left running
        if self._told is not None:
            self._told.join()
        if self._reader is not None:
            self._reader.close()
        self._verdict.close()
        return outcome

    def _scheduler_failed(self) -> bool:
        return self._scheduler is not None and bool(self._scheduler.poll())

    def _end_scheduler(self) -> None:
        """It ends with the ranks, except where they have never joined it."""
        if self._scheduler is None:
            return
        try:
            self._scheduler.wait(_GRACE_SECONDS if any(self._ended.values()) else 2.0)
        except subprocess.TimeoutExpired:
            self._scheduler.kill()
            self._scheduler.wait()

    def _outcome(self) -> Outcome:
        failed = {position: code for position, code in self._ended.items() if code}
        if not failed:
            return Outcome(0)
        number, reason = self._verdict.read()
        first = next(iter(failed))
        if self._numbers is not None and number in self._numbers:
            at = self._numbers.index(number)
            first = at if at in failed else first
        command, status = self._commands[first], shell_status(failed[first])
        is_blamed = self._numbers is None or number in (-1, self._numbers[first])
        if self._scheduler_failed() and not reason and self._scheduler_command is not None:
            return Outcome(status, "the scheduler failed", self._scheduler_command.log)
        if not is_blamed:
            return Outcome(status, reason, command.log)
        return Outcome(status, f"{command.title} failed with status {status}", command.log)


class LogReader:
    """Copies what processes write to their logs to the console, whole lines at a time."""

    def __init__(self, logs: Sequence[Path], output: TextIO) -> None:
        self._files = [log.open("rb") for log in logs]  # they may be removed meanwhile
        self._output = output
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show the rest."""
        self._is_over.set()
        self._thread.join()
        for file in self._files:
            file.close()

    def _run(self) -> None:
        while True:
            is_last = self._is_over.wait(_SHOW_SECONDS)
            for file in self._files:
                self._copy(file, is_last)
            if is_last:
                return

    def _copy(self, file: IO[bytes], is_last: bool) -> None:
        text = file.read()
        end = len(text) if is_last else text.rfind(b"\n") + 1
        file.seek(end - len(text), os.SEEK_CUR)
        with contextlib.suppress(BrokenPipeError):
            self._output.write(text[:end].decode(errors="replace"))
            self._output.flush()


def last_lines(log: Path | None) -> str:
    """The end of a log, indented."""
    if log is None or not log.exists():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "".join(f"  {line}\n" for line in lines)
