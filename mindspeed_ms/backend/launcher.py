# SPDX-License-Identifier: Apache-2.0
"""The process that has started this one, if it is a launcher: what it knows, and whether it lives.

``msrun`` and ``mpiexec`` may be killed; what they have started must not go on without them. A
launcher that ends by design (``msrun`` without ``--join True``, a shell) is not watched. Reads
``/proc`` and the standard library only, because it is asked before MindSpore is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from mindspeed_ms.backend.plain_parser import PlainParser

PID_VARIABLE = "MINDSPEED_MS_LAUNCHER"
"""Process id of a launcher of this project, set for the processes it starts."""
JOB_VARIABLE = "MINDSPEED_MS_JOB"
"""Name that such a launcher gives a job, the same for all its attempts."""
RESTARTS_VARIABLE = "TORCHELASTIC_RESTART_COUNT"
"""How often it has started the job again; torchrun's name."""

MSRUN_OPTIONS = (
    "worker_num",
    "local_worker_num",
    "master_addr",
    "master_port",
    "node_rank",
    "log_dir",
    "join",
    "cluster_time_out",
    "bind_core",
    "bind_numa",
    "sim_level",
    "sim_rank_id",
    "rank_table_file",
    "worker_log_name",
    "tail_worker_log",
)
_MSRUN_WORKERS = 8
"""What ``msrun`` starts without being told a number."""
_OTHERS = ("hydra_pmi_proxy", "slurmstepd")
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Launcher:
    """The parent of this process."""

    pid: int
    name: str
    """Empty if it may end before the job does."""
    local_ranks: int | None = None
    """Ranks it starts on this host, where it says so."""
    is_msrun: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether it is no longer our parent."""
        return os.getppid() != self.pid


class _Parser(PlainParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """A command line that msrun itself would refuse."""
        raise ValueError(message)


def msrun_options(words: Sequence[str]) -> dict[str, str] | None:
    """The options on a command line of ``msrun``; None if it is another program's.

    >>> msrun_options(["python3", "/bin/msrun", "--worker_num=4", "--join", "True", "train.py"])
    {'worker_num': '4', 'join': 'True'}
    """
    for at, word in enumerate(words[:4]):
        if Path(word).name == "msrun" or word == "mindspore.parallel.cluster.run":
            parser = _Parser(add_help=False)
            for name in MSRUN_OPTIONS:
                parser.add_argument(f"--{name}")
            parser.add_argument("script", nargs="?")
            parser.add_argument("rest", nargs=argparse.REMAINDER)
            try:
                given = vars(parser.parse_args(list(words[at + 1 :])))
            except ValueError:
                return {}
            return {name: given[name] for name in MSRUN_OPTIONS if given[name] is not None}
    return None


@functools.lru_cache(maxsize=1)
def find() -> Launcher | None:
    """The launcher of this process; the first call remembers it, so it should come early."""
    pid = os.getppid()
    words = _words_of(pid)
    own = os.environ.get(PID_VARIABLE, "")
    if own.isdigit():  # also when that process has ended already, and another one adopted us
        ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
        return Launcher(int(own), "the launcher", int(ranks) if ranks.isdigit() else None)
    options = msrun_options(words) if os.environ.get("MS_ROLE") else None
    if options is not None:
        text = options.get("local_worker_num", str(_MSRUN_WORKERS))
        ranks_here = int(text) if text.isdigit() else None
        name = "msrun" if options.get("join") == "True" else ""
        return Launcher(pid, name, ranks_here, is_msrun=True)
    program = Path(words[0].partition(": ")[0]).name if words else ""
    return Launcher(pid, program) if program in _OTHERS else None


def watched() -> Launcher | None:
    """The launcher whose end must end this process; None if it may end, or there is none."""
    launcher = find()
    return launcher if launcher is not None and launcher.name else None


def watch(on_end: Callable[[str], None]) -> None:
    """Call ``on_end`` with a description, in a thread, when the launcher has ended."""
    launcher = watched()
    if launcher is None and is_orphan() and _log_of(os.getpid()) in _orphaned_readers().values():
        launcher = Launcher(-1, "msrun")  # it ended before this process could look
    if launcher is not None:
        threading.Thread(target=_watch, args=(launcher, on_end), daemon=True).start()


def _watch(launcher: Launcher, on_end: Callable[[str], None]) -> None:
    while not launcher.has_ended:
        time.sleep(_LOOK_SECONDS)
    end_readers()
    on_end(described(launcher))


def described(launcher: Launcher) -> str:
    """Words for a launcher that is gone."""
    pid = f", pid {launcher.pid}" if launcher.pid > 0 else ""
    return f"its launcher ({launcher.name}{pid}) has ended"


def is_orphan() -> bool:
    """Whether this process of a job has been adopted by the one that takes in all orphans."""
    is_adopted = os.getppid() == 1 or "systemd" in "".join(_words_of(os.getppid())[:1])
    return "MS_ROLE" in os.environ and is_adopted


def end_scheduler() -> None:
    """Kill the scheduler of this job that this process or its launcher has started.

    For a job whose scheduler is silent beyond the limit. A stopped process hears no other signal,
    and MindSpore's ``msrun`` waits for its scheduler without end.
    """
    port = os.environ.get("MS_SCHED_PORT")
    for parent in {os.getpid(), os.getppid()} - {1}:
        with contextlib.suppress(psutil.Error, OSError):
            for child in psutil.Process(parent).children():
                if _is_scheduler(child, port):
                    child.kill()


def _is_scheduler(process: psutil.Process, port: str | None) -> bool:
    try:
        variables = process.environ()
    except (psutil.Error, OSError):
        return False
    return variables.get("MS_ROLE") == "MS_SCHED" and variables.get("MS_SCHED_PORT") == port


def end_readers() -> None:
    """After the end of ``msrun``, end the ``tail -f`` with which it showed logs.

    Those of our own log and of logs that nobody writes any more: to the others it tells that
    ``msrun`` has ended.
    """
    readers = _orphaned_readers() if is_orphan() else {}
    if not readers:
        return
    written = {_log_of(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")}
    own = _log_of(os.getpid())
    for pid, log in readers.items():
        if log == own or log not in written:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _orphaned_readers() -> dict[int, str]:
    """Process id -> log of each ``tail -f`` of ``msrun`` that was adopted as this process was.

    Only of logs beside our own.
    """
    own = _log_of(os.getpid())
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*") if own else ():
        words = _words_of(int(entry.name))
        if words[:2] != ["/usr/bin/tail", "-f"] or len(words) != 3:
            continue
        try:
            status = (entry / "stat").read_text()
            log = os.path.normpath(Path(os.readlink(entry / "cwd")) / words[2])
        except OSError:
            continue
        parent = int(status.rpartition(")")[2].split()[1])
        if parent == os.getppid() and os.path.dirname(log) == os.path.dirname(own):
            found[int(entry.name)] = log
    return found


def _log_of(pid: int) -> str:
    """The file that is a process's standard output; empty if it cannot be told."""
    try:
        return os.readlink(f"/proc/{pid}/fd/1")
    except OSError:
        return ""


def _words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []
