# SPDX-License-Identifier: Apache-2.0
"""Jobs as users start them: ``msrun``, ``mpiexec`` and plain Python; their ends, good and bad.

Every job runs with a time limit and must leave nothing behind: no process, no shared memory.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass

import pytest
from jobs import Job, abandoned_memory, launch_words

SLOW_MSRUN = pytest.param("msrun", marks=pytest.mark.slow)
"""It looks whether its ranks have ended every ten seconds only."""
TIME_LIMIT = 120.0
MAX_SECONDS_TO_END = 10.0

JOB = '''
"""One rank of a test job; argv: how rank 1 ends, a folder for reports."""
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
part = folder / f"rank_{rank}.part"  # whole or not there: rank 1 may end the job at any moment
part.write_text(json.dumps(report))
os.replace(part, folder / f"rank_{rank}.json")
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
    folder = tmp_path / "reports"
    folder.mkdir()
    abandoned, jobs = abandoned_memory(), []

    def run(launcher, mode, ranks=3, options=()):
        words = [*launch_words(launcher, ranks, tmp_path, options), script, mode, folder]
        started = Job(words, tmp_path)
        jobs.append(started)
        status = started.wait(TIME_LIMIT)
        ended = time.time()
        started.seconds_until_gone(5.0)
        outcome = Outcome(status, started.text(), death(folder, ended), *results(folder))
        assert status is not None, f"the job did not end:\n{outcome.text[-3000:]}"
        assert not started.end(), "processes left behind"
        return outcome

    yield run
    for started in jobs:
        started.end()
    assert not abandoned_memory() - abandoned, "shared memory left behind"


def death(folder, ended):
    note = folder / "death"
    return ended - float(note.read_text()) if note.exists() else None


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


@pytest.mark.parametrize("launcher", [SLOW_MSRUN, "mpiexec"])
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


@pytest.mark.parametrize("launcher", [SLOW_MSRUN, "mpiexec"])
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
