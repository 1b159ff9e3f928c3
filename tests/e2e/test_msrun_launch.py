"""Jobs as users start them: ``msrun``, ``mpiexec`` and plain Python; their ends, good and bad.

Every job runs with a time limit and must leave nothing behind: no process, no shared memory.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
TIME_LIMIT = 120.0
MAX_SECONDS_TO_END = 10.0

JOB = '''
"""One rank of a test job; argv: how rank 1 ends, a folder for reports, a marker."""
import json, os, signal, sys, time
from pathlib import Path

mode, folder = sys.argv[1], Path(sys.argv[2])
is_worker = os.environ.get("MS_ROLE") != "MS_SCHED"

def note_death():
    (folder / "death").write_text(str(time.time()))

from mindspeed_ms.backend import comm, env, memory
import numpy as np

number = env.get("MS_NODE_ID") or env.get("PMI_RANK")
if mode == "early" and is_worker and number == "1":
    note_death()
    raise ValueError("no start for rank 1")
if mode == "early_exit" and is_worker and number == "1":
    note_death()
    os._exit(7)
comm.init_process_group()
rank, size = comm.get_rank(), comm.get_world_size()
tensor = memory.from_numpy(np.full(3, rank + 1, np.float32))
comm.all_reduce(tensor)
places = comm.all_gather_object((rank, comm.get_local_rank(), os.getpid()))
report = {name: env.get(name) for name in (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RANK_ID", "PMI_PORT")}
report.update(sum=float(tensor.asnumpy()[0]), places=places, mpi="mpi4py.MPI" in sys.modules)
(folder / f"rank_{rank}.json").write_text(json.dumps(report))
if rank == min(1, size - 1) and mode not in ("ok", "early", "early_exit"):
    note_death()
    if mode == "exception":
        raise ValueError("rank one is unwell")
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "exit":
        os._exit(0)
    if mode == "sys_exit":
        sys.exit(3)
    if mode == "sys_exit_zero":
        sys.exit(0)
    if mode == "abort":
        comm.abort("rank one gives up")
if mode == "sys_exit_zero":
    time.sleep(5)
elif mode != "ok":
    comm.barrier()
(folder / f"finished_{rank}").touch()
'''


@dataclass
class Outcome:
    """What a job left behind."""

    status: int
    text: str
    """Everything written to the console and to log files."""
    seconds_to_end: float | None
    """From the death of rank 1 to the end of the launcher."""
    reports: dict
    finished: list[int]


@pytest.fixture
def job(tmp_path):
    """``job(launcher, mode, ranks, ...)`` runs JOB and checks that nothing is left."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    marker = f"job-{uuid.uuid4().hex}"
    abandoned = abandoned_memory()

    def run(launcher, mode, ranks=3, prefix=(), options=()):
        folder = tmp_path / "reports"
        folder.mkdir(exist_ok=True)
        job_command = [str(script), mode, str(folder), marker]
        command = [*prefix, *launch_command(launcher, ranks, tmp_path, options), *job_command]
        console = tmp_path / "console.log"
        with console.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=tmp_path,
                env=environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(timeout=TIME_LIMIT)
            except subprocess.TimeoutExpired:
                status = None
        ended = time.time()
        orphans = wait_until_gone(marker)
        outcome = Outcome(status, gather_text(tmp_path), *death(folder, ended), *results(folder))
        assert status is not None, f"the job did not end:\n{outcome.text[-3000:]}"
        assert not orphans, f"processes left behind: {orphans}"
        return outcome

    yield run
    for pid in processes_of(marker):
        os.kill(pid, 9)
    assert not abandoned_memory() - abandoned, "shared memory left behind"


def launch_command(launcher, ranks, folder, options):
    if launcher == "plain":
        return [sys.executable]
    if launcher == "mpiexec":
        return [str(SCRIPTS / "mpiexec"), "-n", str(ranks), sys.executable]
    settings = {
        "worker_num": ranks,
        "local_worker_num": ranks,
        "master_addr": "127.0.0.1",
        "master_port": free_port(),
        "log_dir": folder / "msrun_log",
        "join": True,
        "cluster_time_out": 60,
        **dict(options),
    }
    return [str(SCRIPTS / "msrun"), *(f"--{name}={value}" for name, value in settings.items())]


def environment():
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "MPI", "MS_"))}
    path = os.pathsep.join([str(SCRIPTS), os.environ["PATH"]])
    return {**inherited, "PATH": path, "PYTHONPATH": str(REPOSITORY), "GLOG_v": "3"}


def free_port():
    """A port that was free a moment ago; msrun cannot be asked to choose one."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def processes_of(marker):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        # msrun's log readers ("tail -f") are its own business, the ranks are ours.
        if marker.encode() in arguments:
            found.append(int(entry.name))
    return found


def wait_until_gone(marker):
    deadline = time.monotonic() + 5.0
    while processes_of(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes_of(marker)


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


def gather_text(folder):
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*.log")))


def death(folder, ended):
    note = folder / "death"
    return (ended - float(note.read_text()) if note.exists() else None,)


def results(folder):
    reports = {
        int(path.stem.split("_")[1]): json.loads(path.read_text())
        for path in folder.glob("rank_*.json")
    }
    return reports, sorted(int(p.name.split("_")[1]) for p in folder.glob("finished_*"))


# ---- good ends


def test_plain_python_is_one_rank_without_mpi(job):
    outcome = job("plain", "ok")
    assert outcome.status == 0, outcome.text
    assert outcome.reports[0]["sum"] == 1.0
    assert outcome.reports[0]["WORLD_SIZE"] == "1"
    assert not outcome.reports[0]["mpi"]


@pytest.mark.parametrize(("launcher", "ranks"), [("msrun", 1), ("msrun", 4), ("mpiexec", 3)])
def test_all_ranks_start_communicate_and_end(job, launcher, ranks):
    outcome = job(launcher, "ok", ranks)
    assert outcome.status == 0, outcome.text
    assert outcome.finished == list(range(ranks))
    for rank, report in outcome.reports.items():
        assert report["sum"] == sum(range(1, ranks + 1))
        assert (report["RANK"], report["LOCAL_RANK"]) == (str(rank), str(rank))
        assert report["WORLD_SIZE"] == str(ranks)
        assert report["MASTER_ADDR"] == "127.0.0.1" and report["MASTER_PORT"]
        assert report["PMI_PORT"] is None
        assert report["mpi"] == (ranks > 1)


@pytest.mark.parametrize("launcher", ["msrun", "mpiexec"])
def test_a_rank_may_end_early_with_success(job, launcher):
    outcome = job(launcher, "sys_exit_zero")
    assert outcome.status == 0, outcome.text
    assert outcome.finished == [0, 2]


# ---- bad ends


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("exception", "rank 0 stops because rank 1 failed: ValueError: rank one is unwell"),
        ("kill", "because rank 1 "),
        pytest.param("exit", "because rank 1 ", marks=pytest.mark.slow),
        pytest.param(
            "abort",
            "rank 0 stops because rank 1 failed: rank one gives up",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("launcher", ["msrun", "mpiexec"])
def test_the_death_of_a_rank_ends_the_job_and_names_the_rank(job, launcher, mode, message):
    outcome = job(launcher, mode)
    assert outcome.status != 0
    assert outcome.seconds_to_end < MAX_SECONDS_TO_END
    if launcher == "mpiexec" and message.startswith("rank 0"):
        message = message[len("rank 0") :]  # Hydra may end the others before they can speak
    if (launcher, mode) == ("mpiexec", "kill"):
        # Hydra kills the others too, and may be faster than their message.
        assert message in outcome.text or "BAD TERMINATION" in outcome.text
    else:
        assert message in outcome.text
    assert outcome.finished == []


@pytest.mark.parametrize("launcher", ["msrun", "mpiexec"])
def test_a_failing_exit_of_a_rank_ends_the_job(job, launcher):
    outcome = job(launcher, "sys_exit")
    assert outcome.status != 0
    assert outcome.seconds_to_end < MAX_SECONDS_TO_END
    assert "rank 1 ended while rank 0, 2 waited" in outcome.text
    assert outcome.finished == []


@pytest.mark.parametrize(
    ("launcher", "mode"),
    [
        ("msrun", "early"),
        pytest.param("msrun", "early_exit", marks=pytest.mark.slow),
        ("mpiexec", "early"),
    ],
)
def test_a_rank_that_never_joins_ends_the_job(job, launcher, mode):
    outcome = job(launcher, mode)
    assert outcome.status != 0
    assert outcome.seconds_to_end < MAX_SECONDS_TO_END
    assert "ended before" in outcome.text or "had not connected yet" in outcome.text


@pytest.mark.slow
def test_a_port_in_use_is_reported_by_the_scheduler(job):
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        options = {"master_port": foreign.getsockname()[1], "cluster_time_out": 60}
        outcome = job("msrun", "ok", 2, options=options)
    assert outcome.status != 0
    assert "choose another --master_port" in outcome.text


# ---- several hosts


@pytest.fixture
def two_hosts():
    """Two network namespaces with a cable between them: addresses 10.77.0.1 and 10.77.0.2."""
    tag = uuid.uuid4().hex[:6]
    names = [f"h{tag}a", f"h{tag}b"]
    if shutil.which("ip") is None:
        pytest.skip("needs the ip command of iproute2")
    probe = subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"cannot create network namespaces: {probe.stderr.strip()}")
    try:
        configure_hosts(names)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def configure_hosts(names):
    ip("netns", "add", names[1])
    cable = ["type", "veth", "peer", "name", "cable1", "netns", names[1]]
    ip("link", "add", "cable0", "netns", names[0], *cable)
    for index, name in enumerate(names):
        ip("-n", name, "addr", "add", f"10.77.0.{index + 1}/24", "dev", f"cable{index}")
        ip("-n", name, "link", "set", f"cable{index}", "up")
        ip("-n", name, "link", "set", "lo", "up")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def run_on_two_hosts(job, tmp_path, hosts, mode, node_ranks):
    """The job with two ranks per host; the outcome of the first host and the status of both."""
    script, folder = tmp_path / "job.py", tmp_path / "reports"
    folder.mkdir()
    common = {"master_addr": "10.77.0.1", "master_port": 8118, "local_worker_num": 2}
    second = {**common, "node_rank": node_ranks[1], "log_dir": tmp_path / "host1_log"}
    command = [*hosts[1], *launch_command("msrun", 4, tmp_path, second)]
    with (tmp_path / "host1.log").open("w") as output:
        other = subprocess.Popen(
            [*command, str(script), mode, str(folder), "second-host"],
            cwd=tmp_path,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        first = {**common, "node_rank": node_ranks[0]}
        outcome = job("msrun", mode, 4, prefix=hosts[0], options=first)
        other_status = other.wait(timeout=60)
    return outcome, other_status


@pytest.mark.parametrize("node_ranks", [(0, 1), (-1, -1)], ids=["numbered", "unnumbered"])
def test_two_hosts_share_memory_inside_and_talk_tcp_between(job, tmp_path, two_hosts, node_ranks):
    outcome, other_status = run_on_two_hosts(job, tmp_path, two_hosts, "ok", node_ranks)
    assert (outcome.status, other_status) == (0, 0), outcome.text
    assert outcome.finished == [0, 1, 2, 3]
    for rank, report in outcome.reports.items():
        assert report["sum"] == 10.0
        assert report["LOCAL_RANK"] == str(rank % 2)
        assert report["RANK_ID"] == report["RANK"] == str(rank)
        assert report["MASTER_ADDR"] == "10.77.0.1"


def test_a_death_on_one_host_ends_both(job, tmp_path, two_hosts):
    outcome, other_status = run_on_two_hosts(job, tmp_path, two_hosts, "kill", (0, 1))
    assert outcome.status != 0 and other_status != 0
    assert "rank 2 stops because rank 1 " in (tmp_path / "host1_log" / "worker_2.log").read_text()
