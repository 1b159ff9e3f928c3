# SPDX-License-Identifier: Apache-2.0
"""The fixture itself: failures, hangs and deaths fail the test and name the rank."""

from __future__ import annotations

import os
import signal
import time

import pytest
from dist import RankFailure

from mindspeed_ms.backend import comm


def rank_worker():
    return comm.get_rank()


def raising_worker():
    if comm.get_rank() == 1:
        raise ValueError("rank one says no")
    comm.barrier()


def hanging_worker():
    if comm.get_rank() == 1:
        time.sleep(60)
    comm.barrier()


def dying_worker():
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.barrier()


def skipping_worker():
    pytest.skip("not today")


def unpicklable_worker():
    return (lambda: None) if comm.get_rank() == 1 else None


@pytest.mark.parametrize(
    ("worker", "texts"),
    [
        (raising_worker, ["rank 1 failed", "ValueError: rank one says no", "in raising_worker"]),
        (hanging_worker, ["nothing heard within 2 s", "in hanging_worker"]),
        (dying_worker, ["rank 1 failed", "it ended with status -9"]),
        (unpicklable_worker, ["rank 1 failed", "pickle"]),
    ],
)
def test_a_failure_is_reported_and_the_next_task_runs(dist_run, worker, texts):
    with pytest.raises(RankFailure) as failure:
        dist_run(worker, ranks=2, timeout=2.0 if worker is hanging_worker else 30.0)
    for text in texts:
        assert text in str(failure.value)
    assert dist_run(rank_worker, ranks=2) == [0, 1]


def test_a_skip_in_a_rank_skips_the_test(dist_run):
    with pytest.raises(pytest.skip.Exception, match="not today"):
        dist_run(skipping_worker, ranks=2)


def test_workers_and_parameters_must_reach_the_ranks(dist_run):
    with pytest.raises(ValueError, match="define it at module level"):
        dist_run(lambda: None, ranks=2)
    with pytest.raises(ValueError, match="must be picklable"):
        dist_run(rank_worker, ranks=2, function=lambda: None)
