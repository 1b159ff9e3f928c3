# SPDX-License-Identifier: Apache-2.0
"""Supervised runs: after a rank has died they go on from their newest checkpoint, bit for bit."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time

import pytest
from jobs import REPOSITORY, Job, launch_words

pytestmark = pytest.mark.e2e

DATA = REPOSITORY / "data" / "tiny"
YAML = REPOSITORY / "configs" / "tiny_gpt.yaml"
LIMIT = 1800.0
"""Seconds of the longest run on a busy machine."""
STEP = re.compile(r"iteration +(\d+)/")
LINE = re.compile(r"iteration +(\d+)/ +\d+ \|.* lm loss: (\S+) \|.* grad norm: (\S+) \|")


def training_words(folder, iterations, *more):
    """A short run with dropout, two ranks with shards of the optimizer, a checkpoint every step."""
    return [
        *(REPOSITORY / "pretrain_gpt.py", "--yaml", YAML, "--train-iters", str(iterations)),
        *("--tensor-model-parallel-size", "1", "--global-batch-size", "4", "--log-interval", "1"),
        *("--hidden-dropout", "0.1", "--attention-dropout", "0.1", "--lr-warmup-iters", "2"),
        *("--eval-interval", "1000", "--eval-iters", "0", "--use-distributed-optimizer"),
        *("--data-path", DATA / "tiny_text_document", "--tokenizer-model", DATA / "tok.model"),
        *("--data-cache-path", folder / "cache", *more),
    ]


def saving(folder, interval=1):
    return ("--save", folder / "ck", "--save-interval", str(interval), "--keep-checkpoint-max", "2")


def losses(text):
    """Iteration -> what was printed about it; an iteration that is repeated must repeat itself."""
    seen = {}
    for number, loss, norm in LINE.findall(text):
        assert seen.setdefault(int(number), (loss, norm)) == (loss, norm), number
    return seen


@pytest.fixture
def start(tmp_path):
    jobs = []

    def run(launcher, script, ranks=2, options=(), **variables):
        words = [*launch_words(launcher, ranks, tmp_path, options), *script]
        jobs.append(Job(words, tmp_path, **variables))
        return jobs[-1]

    yield run
    for job in jobs:
        job.end()


def undisturbed(start, tmp_path, iterations):
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    job = start("torchrun", training_words(folder, iterations), options={"log-dir": folder / "log"})
    assert job.wait(LIMIT) == 0, job.text()[-3000:]
    expected = losses(job.console.read_text())
    assert sorted(expected) == list(range(1, iterations + 1))
    job.console.unlink()
    shutil.rmtree(folder / "log")
    return expected


def kill_at_random(job, draw, kills, iterations):
    """Kill ranks or the scheduler at random moments; how many kills there were.

    A moment is a number of iterations after the kill before, and a part of one more, so that as
    many fit into the run on a fast machine as on a slow one; one in five is in a start.
    """
    done, newest = 0, 0
    while done < kills and job.process.poll() is None:
        if draw.random() < 0.2:
            time.sleep(draw.uniform(0.0, 4.0))
        else:
            aim = newest + draw.randint(1, 2 * (iterations - newest) // (kills - done + 1))
            while newest < aim and job.process.poll() is None:
                time.sleep(0.02)
                newest = max(map(int, STEP.findall(job.console.read_text())), default=0)
            time.sleep(draw.uniform(0.0, 0.2))
        victim = draw.choice(["0", "1", "scheduler"])
        if job.process.poll() is None and job.send(victim, signal.SIGKILL):
            done += 1
    return done


def check_supervised_run(start, tmp_path, kills, iterations, draw, launcher="torchrun"):
    expected = undisturbed(start, tmp_path, iterations)
    name = "max_restarts" if launcher == "own_msrun" else "max-restarts"
    script = training_words(tmp_path, iterations, *saving(tmp_path))
    job = start(launcher, script, options={name: kills + 5})
    if kills == 2:
        job.wait_for("iteration        3/")
        job.send("1", signal.SIGKILL)
        job.wait_for("restart 1: the run goes on from iteration")
        job.wait_for(f"iteration {iterations - 2:8d}/")
        job.send("0", signal.SIGKILL)
        done = 2
    else:
        done = kill_at_random(job, draw, kills, iterations)
    assert job.wait(LIMIT) == 0, job.text()[-4000:]
    assert losses(job.console.read_text()) == expected
    assert done == kills or kills > 2
    text = job.console.read_text()
    assert f"restart 1 of {kills + 5}" in text
    return done


def test_two_kills_change_no_loss(start, tmp_path):
    assert check_supervised_run(start, tmp_path, 2, 30, None) == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "own_msrun"])
def test_thirty_kills_at_random_moments_change_no_loss(start, tmp_path, first_seed, launcher):
    draw = random.Random(first_seed)
    assert check_supervised_run(start, tmp_path, 30, 600, draw, launcher) >= 20


@pytest.mark.slow
def test_a_rank_that_stops_answering_is_named_and_the_job_starts_again(start, tmp_path):
    script = training_words(
        tmp_path, 400, *saving(tmp_path, 5), "--distributed-timeout-minutes", "1"
    )
    job = start("torchrun", script, options={"max-restarts": 1}, MINDSPEED_MS_SILENCE_SECONDS="5")
    # A rank tells every second where it is: on a fast machine ten iterations take less.
    job.wait_for("iteration      100/")
    job.send("1", signal.SIGSTOP)
    started = time.monotonic()
    job.wait_for("rank 1 has not answered for 5 s, last seen ")
    assert time.monotonic() - started < 15
    job.wait_for("the limit is --distributed-timeout-minutes (1)", 90)
    job.wait_for("restart 1: the run goes on from iteration", 60)
    assert job.wait(240) == 0, job.text()[-3000:]
    place = r"rank 1 has not answered for 5 s, last seen (in|after) \w+ of iteration \d+"
    assert re.search(place, job.text()), job.text()[-3000:]


def test_restarts_end(start, tmp_path):
    script = tmp_path / "fail.py"
    script.write_text(
        "import os, sys\nprint('attempt', os.environ['TORCHELASTIC_RESTART_COUNT'], flush=True)\n"
        "sys.exit(5)\n"
    )
    job = start("torchrun", [script], options={"max-restarts": 2})
    assert job.wait(60) == 5
    text = job.console.read_text()
    assert all(f"attempt {count}" in text for count in range(3)) and "attempt 3" not in text
    assert "torchrun: restart 2 of 2" in text
    assert sorted(os.listdir(tmp_path / "log")) == [
        *("attempt_0", "attempt_1", "scheduler.log", "worker_0.log", "worker_1.log")
    ]


def test_a_mistake_of_the_user_is_not_started_again(start, tmp_path):
    script = training_words(tmp_path, 5, "--no-such-flag")
    job = start("torchrun", script, options={"max-restarts": 3})
    assert job.wait(60) == 2
    assert "restart" not in job.console.read_text()


def test_one_rank_is_started_again_too(start, tmp_path):
    script = tmp_path / "once.py"
    script.write_text(
        "import os, signal\nif os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\nprint('second time', flush=True)\n"
    )
    job = start("torchrun", [script], ranks=1, options={"max-restarts": 1})
    assert job.wait(60) == 0
    text = job.console.read_text()
    assert "rank 0 failed with status 137" in text and "second time" in text
