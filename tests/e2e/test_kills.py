# SPDX-License-Identifier: Apache-2.0
"""Launchers, schedulers and ranks that are killed: nothing goes on, nothing stays, nobody lies."""

from __future__ import annotations

import random
import signal
import time

import pytest
from jobs import Job, abandoned_memory, launch_words

SECONDS_TO_NOTICE = 5.0
SLACK = 10.0
"""What ending takes, and a busy machine adds."""

LOOP = '''
"""Ranks that communicate until they are told to stop; argv: whether they save on SIGTERM."""
import signal, sys, time
from mindspeed_ms.backend import comm, memory
import numpy as np

asked = []
if sys.argv[1] == "save":
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
comm.init_process_group()
if sys.argv[1] == "limit":
    comm.set_timeout(0.1)
tensor = memory.from_numpy(np.ones(1000, np.float32))
step = 0
while True:
    step += 1
    comm.note_iteration(step)
    comm.all_reduce(tensor)
    if any(comm.all_gather_object(bool(asked))):
        print("saved by rank", comm.get_rank(), flush=True)
        sys.exit(0)
    if step == 3:
        sys.stdout.write(f"rank {comm.get_rank()} is at work\\n")  # whole lines, also on one pipe
        sys.stdout.flush()
    if step == 100:
        sys.stdout.write(f"rank {comm.get_rank()} is at step 100\\n")
        sys.stdout.flush()
    if sys.argv[1] == "stuck" and step == 20 and comm.get_rank() == 1:
        comm.set_timeout(0.1)
        time.sleep(100)
    time.sleep(0.02)
'''


@pytest.fixture
def start(tmp_path):
    """``start(launcher, mode)`` starts three ranks of LOOP; nothing may be left at the end."""
    script = tmp_path / "loop.py"
    script.write_text(LOOP)
    before, jobs = abandoned_memory(), []

    def run(launcher, mode="plain", ranks=3, **variables):
        words = [*launch_words(launcher, ranks, tmp_path), script, mode]
        jobs.append(Job(words, tmp_path, **variables))
        return jobs[-1]

    yield run
    for job in jobs:
        job.end()
    assert not abandoned_memory() - before, "shared memory left behind"


def at_work(job, ranks=3):
    for rank in range(ranks):
        job.wait_for(f"rank {rank} is at work")
    return job


def check_end(job, expected=None):
    """Everything is gone in time, the status is honest, and no rank shows a traceback."""
    seconds = job.seconds_until_gone()
    left = job.end()
    status = job.wait()
    assert seconds < SECONDS_TO_NOTICE + SLACK, f"left after {seconds:.1f} s: {left}\n{job.text()}"
    assert status != 0, job.text()
    assert expected is None or status == expected, f"status {status}:\n{job.text()}"
    assert "Traceback" not in job.logs(), job.logs()
    return job.text()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("launcher", "name", "status"),
    [
        ("msrun", "SIGKILL", -9),
        ("mpiexec", "SIGKILL", -9),
        pytest.param("torchrun", "SIGKILL", -9, marks=SLOW),
        ("torchrun", "SIGINT", 130),
        pytest.param("msrun", "SIGTERM", -15, marks=SLOW),
        pytest.param("torchrun", "SIGTERM", 143, marks=SLOW),
        pytest.param("own_msrun", "SIGKILL", -9, marks=SLOW),
        pytest.param("own_msrun", "SIGINT", 130, marks=SLOW),
        pytest.param("own_msrun", "SIGTERM", 143, marks=SLOW),
        pytest.param("mpiexec", "SIGTERM", None, marks=SLOW),
        pytest.param("mpiexec", "SIGINT", None, marks=SLOW),
    ],
)
def test_the_end_of_the_launcher_ends_the_job(start, launcher, name, status):
    job = at_work(start(launcher))
    job.send("launcher", getattr(signal, name))
    check_end(job, status)


@pytest.mark.parametrize(
    ("launcher", "name"),
    [
        pytest.param("msrun", "SIGKILL", marks=SLOW),
        ("torchrun", "SIGINT"),
        pytest.param("msrun", "SIGTERM", marks=SLOW),
        pytest.param("torchrun", "SIGKILL", marks=SLOW),
        pytest.param("torchrun", "SIGTERM", marks=SLOW),
        pytest.param("mpiexec", "SIGKILL", marks=SLOW),
    ],
)
def test_ranks_that_save_on_sigterm_do_so_when_the_launcher_ends(start, launcher, name):
    job = at_work(start(launcher, "save"))
    job.send("launcher", getattr(signal, name))
    text = check_end(job)
    if launcher != "mpiexec":  # Hydra kills its ranks at once
        assert all(f"saved by rank {rank}" in text for rank in range(3)), text


@pytest.mark.parametrize(
    ("launcher", "victim", "message"),
    [
        pytest.param("torchrun", "scheduler", "lost the connection to the scheduler", marks=SLOW),
        ("torchrun", "1", "torchrun: rank 1 failed with status 137"),
        pytest.param("msrun", "scheduler", "lost the connection to the scheduler", marks=SLOW),
        pytest.param("msrun", "1", "because rank 1 ", marks=SLOW),
        pytest.param("own_msrun", "1", "rank 1 failed with status 137", marks=SLOW),
        pytest.param("mpiexec", "proxy", "", marks=SLOW),
        pytest.param("mpiexec", "0", "", marks=SLOW),
        pytest.param("mpiexec", "1", "", marks=SLOW),
    ],
)
def test_the_death_of_a_part_ends_the_job(start, launcher, victim, message):
    job = at_work(start(launcher))
    job.send(victim, signal.SIGKILL)
    assert message in check_end(job)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "msrun"])
def test_an_interrupted_scheduler_says_so(start, launcher):
    job = at_work(start(launcher))
    job.send("scheduler", signal.SIGINT)
    assert "because the scheduler was interrupted from the keyboard" in check_end(job)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "msrun"])
def test_a_stopped_rank_is_named_and_ends_the_job_at_the_limit(start, launcher):
    job = at_work(start(launcher, "limit", MINDSPEED_MS_SILENCE_SECONDS="2"))
    job.wait_for("rank 1 is at step 100")
    job.send("1", signal.SIGSTOP)
    job.wait_for("rank 1 has not answered for 2 s, last seen ")
    assert " all_" in job.text() and " of iteration " in job.text()
    job.send("1", signal.SIGCONT)
    job.wait_for("rank 1 answers again after ")
    job.send("1", signal.SIGSTOP)
    job.wait_for("the limit is --distributed-timeout-minutes (0.1)")
    check_end(job)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "mpiexec"])
def test_a_rank_that_hangs_outside_of_communication_is_named(start, launcher):
    job = at_work(start(launcher, "stuck", MINDSPEED_MS_SILENCE_SECONDS="2"))
    job.wait_for(" of iteration 21 for rank 1, last seen after all_gather of iteration 20")
    job.wait_for("the limit is --distributed-timeout-minutes (0.1)")
    check_end(job)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["msrun", "torchrun"])
def test_a_stopped_scheduler_is_named_and_ends_the_job_at_the_limit(start, launcher):
    job = at_work(start(launcher, "limit", MINDSPEED_MS_SILENCE_SECONDS="2"))
    job.send("scheduler", signal.SIGSTOP)
    job.wait_for("the scheduler at 127.0.0.1:")
    job.wait_for(" has not answered for ")
    check_end(job)


def test_a_second_and_a_third_signal_end_ranks_that_do_not_listen(start, tmp_path):
    script = tmp_path / "deaf.py"
    script.write_text(
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('rank', os.environ['RANK'], 'is at work', flush=True)\ntime.sleep(100)\n"
    )
    job = Job([*launch_words("torchrun", 2, tmp_path), script], tmp_path)
    at_work(job, ranks=2)
    for _ in range(3):
        assert job.process.poll() is None
        job.send("launcher", signal.SIGTERM)
        time.sleep(0.5)
    check_end(job, 143)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_a_kill_at_any_moment_leaves_nothing_behind(start, seed, first_seed):
    draw = random.Random(first_seed + seed)
    launcher = draw.choice(["msrun", "torchrun", "own_msrun", "mpiexec"])
    inner = "proxy" if launcher == "mpiexec" else "scheduler"
    victim = draw.choice(["launcher", "launcher", inner, "0", "1", "2"])
    name = draw.choice(["SIGKILL", "SIGKILL", "SIGTERM"]) if victim != "proxy" else "SIGKILL"
    mode = draw.choice(["plain", "save"])
    moment = draw.uniform(0.0, 8.0)
    job = start(launcher, mode)
    time.sleep(moment)
    deadline = time.monotonic() + 30
    while not job.send(victim, getattr(signal, name)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if name == "SIGTERM" and mode == "save" and victim.isdigit():
        job.seconds_until_gone()  # all ranks may have saved and ended well
        assert not job.end(), f"{launcher} {victim} {name} {moment:.2f}"
        return
    check_end(job)
