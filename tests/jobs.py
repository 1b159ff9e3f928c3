# SPDX-License-Identifier: Apache-2.0
"""Jobs in processes of their own, marked so that everything they start can be found and ended."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sys.executable).parent
MARK = "MARK_OF_A_TEST_JOB"
TORCHRUN = [sys.executable, "-m", "mindspeed_ms.backend.torchrun.run"]
OWN_MSRUN = [sys.executable, "-m", "mindspeed_ms.backend.torchrun.msrun"]


def environment(**more):
    """This process's variables without those of launchers."""
    foreign = ("PMI", "MPI", "MS_", "MINDSPEED_MS", "HYD", "SLURM")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    path = os.pathsep.join([str(SCRIPTS), os.environ["PATH"]])
    fixed = {"PATH": path, "PYTHONPATH": str(REPOSITORY), "GLOG_v": "3", "OMP_NUM_THREADS": "1"}
    return {name: value for name, value in {**inherited, **fixed, **more}.items() if value != ""}


def reported(script, *words, seconds=600):
    """What a script of the tests prints last, as JSON; it must end well."""
    result = subprocess.run(
        [sys.executable, str(script), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOG_v": "3"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.strip().splitlines()[-1])


def free_port():
    """A port that was free a moment ago; msrun cannot be asked to choose one."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def launch_words(launcher, ranks, folder, options=()):
    """How a launcher starts so many ranks on this host."""
    if launcher == "plain":
        return [sys.executable]
    if launcher == "mpiexec":
        return [str(SCRIPTS / "mpiexec"), "-n", str(ranks), sys.executable]
    if launcher == "torchrun":
        settings = {"nproc-per-node": ranks, "log-dir": folder / "log", **dict(options)}
        words = [f"--{name}={value}" for name, value in settings.items()]
        return [*TORCHRUN, *words, *([] if "master-port" in settings else ["--standalone"])]
    settings = {
        "worker_num": ranks,
        "local_worker_num": ranks,
        "master_addr": "127.0.0.1",
        "master_port": free_port(),
        "log_dir": folder / "log",
        "join": True,
        "cluster_time_out": 60,
        **dict(options),
    }
    front = OWN_MSRUN if launcher == "own_msrun" else [str(SCRIPTS / "msrun")]
    return [*front, *(f"--{name}={value}" for name, value in settings.items())]


def die_with_the_test():
    """In a new process: be killed when the test's own process is."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def log_files(folder):
    """All below a folder; unlike ``rglob`` it passes over folders that go meanwhile."""
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.suffix == ".log")


class Job:
    """A launcher and all that comes from it."""

    def __init__(self, words, folder, prefix=(), **variables):
        self.mark = uuid.uuid4().hex
        self.folder = folder
        self.console = folder / f"console_{self.mark[:6]}.log"
        with self.console.open("w") as output:
            self.process = subprocess.Popen(
                [*prefix, *map(str, words)],
                cwd=folder,
                env=environment(**{MARK: self.mark, **variables}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_the_test,
            )

    def processes(self):
        """Process id -> variables of everything that is still there."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                content = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if self.mark.encode() in content and state != "Z":
                pairs = (item.partition("=") for item in content.decode().split("\0"))
                found[int(entry.name)] = {name: value for name, _, value in pairs}
        return found

    def find(self, role):
        """Process ids of ``launcher``, ``scheduler``, ``proxy``, or a rank by its number."""
        if role == "launcher":
            return [self.process.pid]
        found = []
        for pid, variables in self.processes().items():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            is_python = "python" in words[0]
            rank = variables.get("MS_NODE_ID") or variables.get("PMI_RANK")
            if role == "scheduler":
                is_it = variables.get("MS_ROLE") == "MS_SCHED" and is_python
            elif role == "proxy":
                is_it = "hydra_pmi_proxy" in words[0]
            else:
                is_worker = variables.get("MS_ROLE", "MS_WORKER") == "MS_WORKER"
                is_it = is_python and is_worker and rank == str(role)
            if is_it:
                found.append(pid)
        return found

    def send(self, role, number):
        """Send a signal to a role; False if there is nobody yet."""
        pids = self.find(role)
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return bool(pids)

    def text(self):
        """Everything written to the console and to log files."""
        logs = [log for log in log_files(self.folder) if "console_" not in log.name]
        return "\n".join(path.read_text(errors="replace") for path in (self.console, *logs))

    def logs(self):
        """What ranks and scheduler have written, without the launcher's own words."""
        folder = self.folder / "log"
        return "\n".join(path.read_text(errors="replace") for path in log_files(folder))

    def wait_for(self, text, seconds=60.0):
        """Wait until something has been written."""
        deadline = time.monotonic() + seconds
        while text not in self.text():
            assert time.monotonic() < deadline, f"{text!r} never came:\n{self.text()[-3000:]}"
            assert self.process.poll() is None or text in self.text(), self.text()[-3000:]
            time.sleep(0.05)

    def wait(self, seconds=60.0):
        """The exit status of the launcher; None if it does not end."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def seconds_until_gone(self, limit=20.0):
        """How long until nothing is left; more than ``limit`` if something stays."""
        started = time.monotonic()
        while self.processes() and time.monotonic() - started < limit:
            time.sleep(0.05)
        return time.monotonic() - started if not self.processes() else limit + 1.0

    def end(self):
        """Kill whatever is left; returns the command lines."""
        left = []
        for pid in self.processes():
            try:
                left.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " "))
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        self.process.wait()
        return left


def attack_each(folder, names, attack):
    """Attack what each name means in a folder of its own; a line about each, failed or not."""
    for name in names:
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            told = dict(attack(name, place))
        except AssertionError as error:
            told = f"FAILED {error}"
        sys.stdout.write(f"{name}: {told}\n")
        sys.stdout.flush()


def abandoned_memory():
    """MPICH's shared-memory segments that no living process uses."""
    segments = {str(path) for path in Path("/dev/shm").glob("mpich_shm_*")}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            text = maps.read_text(errors="replace") if segments else ""
        except OSError:
            continue
        segments = {segment for segment in segments if segment not in text}
    return segments
