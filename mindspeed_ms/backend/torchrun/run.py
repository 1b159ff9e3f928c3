"""The launcher: starts ``msrun``, shows what ranks print, forwards signals, keeps the status."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

import psutil

from mindspeed_ms.backend.torchrun import worker
from mindspeed_ms.backend.torchrun.options import LaunchError, Request, read

LAST_LINES = 20
_POLL_SECONDS = 0.2
_FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT")


def msrun_command(request: Request, port: int) -> list[str]:
    """The words of ``msrun`` for a request.

    >>> request = Request(1, 2, None, "127.0.0.1", 29500, "train.py", ("--lr", "1"))
    >>> msrun_command(request, 29500)[1:5]
    ['--worker_num=2', '--local_worker_num=2', '--master_addr=127.0.0.1', '--master_port=29500']
    """
    words = [
        _msrun(),
        f"--worker_num={request.world_size}",
        f"--local_worker_num={request.ranks_per_node}",
        f"--master_addr={request.master_addr}",
        f"--master_port={port}",
        f"--log_dir={request.log_dir}",
        "--join=True",
    ]
    if not request.is_local:
        words.append(f"--node_rank={request.node_rank}")
    table = os.environ.get("RANK_TABLE_FILE")
    if table:
        words.append(f"--rank_table_file={table}")
    module = ["-m"] if request.is_module else []
    return [*words, worker.__file__, *module, request.script, *request.script_args]


def _msrun() -> str:
    beside = Path(sys.executable).with_name("msrun")
    return str(beside) if beside.exists() else shutil.which("msrun") or "msrun"


def launch(request: Request) -> int:
    """Start the ranks of this host and wait for them.

    Returns:
        0, or the exit status of the rank that failed first.

    Raises:
        LaunchError: the request cannot be followed.
    """
    _check(request)
    for name in request.ignored:
        sys.stderr.write(f"torchrun: {name} changes nothing here\n")
    if "--dry-run" in request.script_args or "--dry_run" in request.script_args:
        words = list(request.script_args)
        if "--world-size" not in words and "--world_size" not in words:
            words += ["--world-size", str(request.world_size)]
        return _run_alone(request, words, size=1)
    if request.world_size == 1:
        return _run_alone(request, list(request.script_args), size=1)
    port = _free_port() if request.picks_port else request.master_port
    Path(request.log_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        return _Job(request, port, Path(folder)).run()


def _check(request: Request) -> None:
    if not request.is_module and not Path(request.script).is_file():
        raise LaunchError(f"there is no script {request.script}; check the path")
    if request.is_local:
        return
    if request.node_rank is None:
        raise LaunchError(
            f"--nnodes {request.nodes} needs --node-rank; give each host its own number"
        )
    if request.node_rank >= request.nodes:
        raise LaunchError(
            f"--node-rank {request.node_rank} must be below --nnodes {request.nodes}; count from 0"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run_alone(request: Request, words: list[str], size: int) -> int:
    """Plain Python, with the variables of a single rank."""
    variables = {"RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "WORLD_SIZE": size}
    variables |= {"LOCAL_WORLD_SIZE": size, "MASTER_PORT": request.master_port}
    texts = {name: str(value) for name, value in variables.items()}
    environment = {**os.environ, **texts, "MASTER_ADDR": request.master_addr}
    module = ["-m"] if request.is_module else []
    command = [sys.executable, *module, request.script, *words]
    process = subprocess.Popen(command, env=environment)
    with _forwarding(lambda number: process.send_signal(number)):
        return _shell_status(process.wait())


def _shell_status(code: int) -> int:
    return code if code >= 0 else 128 - code


class _forwarding(contextlib.AbstractContextManager["_forwarding"]):  # noqa: N801 (a verb in use)
    """While inside, signals to this process go to ``send`` instead of ending it."""

    def __init__(self, send: object) -> None:
        self._send = send
        self._before: dict[int, object] = {}

    def __enter__(self) -> _forwarding:
        for name in _FORWARDED:
            number = getattr(signal, name)
            self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):
            self._send(number)  # type: ignore[operator]

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


class _Job:
    """One run of ``msrun`` on this host."""

    def __init__(self, request: Request, port: int, folder: Path) -> None:
        self._request, self._folder = request, folder
        self._logs = Path(request.log_dir)
        self._started = time.time()
        first = (request.node_rank or 0) * request.ranks_per_node
        self._ranks = range(first, first + request.ranks_per_node)
        for rank in self._ranks:
            self._log(rank).unlink(missing_ok=True)
        environment = {
            **os.environ,
            worker.FOLDER: str(folder),
            worker.RANKS_PER_NODE: str(request.ranks_per_node),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(
                part for part in (_package_folder(), os.environ.get("PYTHONPATH")) if part
            ),
            "PYTHONUNBUFFERED": "1",
        }
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            msrun_command(request, port),
            env=environment,
            stdout=(self._logs / "msrun.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._num_signals = 0

    def _log(self, rank: int) -> Path:
        return self._logs / f"worker_{rank}.log"

    def run(self) -> int:
        ended = threading.Event()
        show = threading.Thread(target=self._follow, args=(sys.stdout, ended))
        show.start()
        try:
            with _forwarding(self._forward):
                code = self._process.wait()
        finally:
            ended.set()
            show.join()
        if code == 0:
            return 0
        return self._report_failure(_shell_status(code))

    def _forward(self, number: int) -> None:
        """Send a signal to the ranks; the third one ends them and ``msrun`` at once."""
        self._num_signals += 1
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return
        for child in children:
            with contextlib.suppress(psutil.Error):
                is_rank = child.environ().get("MS_ROLE") == "MS_WORKER"
                if self._num_signals >= 3:
                    child.kill()
                elif is_rank:
                    child.send_signal(number)
        if self._num_signals >= 3:
            self._process.kill()

    def _follow(self, output: TextIO, ended: threading.Event) -> None:
        """Copy what ranks write to their logs to the console, whole lines at a time."""
        positions = dict.fromkeys(self._ranks, 0)
        while True:
            is_last = ended.wait(_POLL_SECONDS)
            for rank in self._ranks:
                positions[rank] = self._copy(output, rank, positions[rank], is_last)
            if is_last:
                return

    def _copy(self, output: TextIO, rank: int, position: int, is_last: bool) -> int:
        path = self._log(rank)
        if not path.exists():
            return position
        with path.open("rb") as log:
            log.seek(position)
            text = log.read()
        end = len(text) if is_last else text.rfind(b"\n") + 1
        output.write(text[:end].decode(errors="replace"))
        output.flush()
        return position + end

    def _report_failure(self, status: int) -> int:
        """Show the last lines of the rank that failed first; return its exit status."""
        rank, status = self._first_to_fail(status)
        if rank is None or not self._log(rank).exists():
            tail = (self._logs / "msrun.log").read_text(errors="replace").splitlines()[-LAST_LINES:]
            sys.stderr.write(f"torchrun: msrun failed, see {self._logs}; its last lines:\n")
        else:
            tail = self._log(rank).read_text(errors="replace").splitlines()[-LAST_LINES:]
            sys.stderr.write(
                f"torchrun: rank {rank} failed with status {status}; its last lines "
                f"({self._log(rank)}):\n"
            )
        sys.stderr.write("".join(f"  {line}\n" for line in tail))
        return status

    def _first_to_fail(self, status: int) -> tuple[int | None, int]:
        ends = []
        for path in self._folder.glob("end_*"):
            seconds, code = path.read_text().split()
            ends.append((float(seconds), int(path.name[4:]), int(code)))
        scheduler = self._logs / "scheduler.log"
        text = scheduler.read_text(errors="replace") if scheduler.exists() else ""
        named = re.search(r"the job ends because .*?rank (\d+)", text)
        if named and not any(rank == int(named[1]) for _, rank, _ in ends):
            return int(named[1]), status
        if ends:
            _, first, status = min(ends)
            return first, status
        return None, status


def _package_folder() -> str:
    return str(Path(__file__).resolve().parents[3])


def main(prog: str = "torchrun", words: Sequence[str] | None = None) -> int:
    """Entry point of the launcher commands; ``--bin-dir`` prints the directory for PATH."""
    words = sys.argv[1:] if words is None else words
    if list(words) == ["--bin-dir"]:
        sys.stdout.write(f"{Path(__file__).with_name('bin')}\n")
        return 0
    try:
        return launch(read(prog, words, os.environ))
    except LaunchError as error:
        sys.stderr.write(f"{prog}: error: {error}\n")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
