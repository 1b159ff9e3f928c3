# SPDX-License-Identifier: Apache-2.0
"""Collectives in the background, and ranks that meet in shared memory; threads stand for ranks."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mindspeed_ms.backend.lane import Lane
from mindspeed_ms.backend.meeting import Meeting
from mindspeed_ms.backend.mpi_work import CallClock
from mindspeed_ms.backend.recording import CommCall

RANKS = 3


def test_a_lane_makes_calls_in_their_order_while_others_compute():
    gate, made = threading.Event(), []
    lane = Lane("lane", CallClock())
    first = lane.begin(lambda: (gate.wait(), made.append(1)))
    second = lane.begin(lambda: made.append(2))
    assert not first.is_completed() and not second.is_completed()
    gate.set()
    second.wait()
    assert made == [1, 2] and first.is_completed()
    assert 0.0 < first.done <= second.done
    lane.end()


def test_what_goes_wrong_in_a_lane_is_raised_where_the_result_is_wanted():
    def fail():
        raise OSError("gone")

    told = []
    lane = Lane("lane", CallClock((OSError,), told.append))
    work = lane.begin(fail)
    with pytest.raises(OSError, match="gone"):
        work.wait()
    assert [str(error) for error in told] == ["gone"]
    after = lane.begin(lambda: None)
    after.wait()
    lane.end()


@pytest.mark.parametrize("spun_seconds", [0.0, 1e-3])
def test_ranks_that_meet_know_what_all_have_told(spun_seconds):
    shared = np.zeros(Meeting.num_bytes(RANKS), np.uint8)
    Meeting(shared, RANKS, 0).prepare()

    def rank_worker(rank):
        meeting = Meeting(shared, RANKS, rank, spun_seconds)
        found = []
        for turn in range(50):
            found.append(meeting.tell([rank, turn]).tolist())
            if turn % 3 == 0:
                meeting.meet()
        return found

    with ThreadPoolExecutor(RANKS) as pool:
        results = list(pool.map(rank_worker, range(RANKS)))
    assert results == [[[[k, turn] for k in range(RANKS)] for turn in range(50)]] * RANKS


def test_what_is_hidden_of_a_call_is_what_this_rank_did_not_wait():
    # Started at 1, which took 0.5; waited for from 4 to 5; the result was there at 4.5.
    call = CommCall("all_reduce", "g", (0, 1), 4, 1.0, 4.0, 5.0, begun=1.5, done=4.5)
    assert (call.visible, call.hidden) == (1.5, 2.0)
    blocking = CommCall("all_reduce", "g", (0, 1), 4, 1.0, 1.0, 5.0)
    assert (blocking.visible, blocking.hidden) == (4.0, 0.0)
