# SPDX-License-Identifier: Apache-2.0
"""Ranks that read each other's memory, and what they do where they cannot.

``test_comm_contract`` shows that every collective gives the right numbers along both ways.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from mindspeed_ms.backend import comm, env, memory
from mindspeed_ms.backend.peer_memory import PeerMemory


def readers_worker(hidden_rank):
    """Which ways a large sum took, and the sum; one rank may be out of the others' sight."""
    rank, kept = comm.get_rank(), os.getpid
    if rank == hidden_rank:
        os.getpid = os.getppid  # as in a container, where it has another number
    peers = PeerMemory()
    try:
        is_served = peers.serves(comm.world_group())
        again = peers.serves(comm.world_group())
    finally:
        os.getpid = kept
    values = np.full(2**18, rank + 1.0, np.float32)
    tensor = memory.from_numpy(values)
    if is_served:
        peers.all_reduce(memory.flat_view(tensor), tensor, comm.ReduceOp.SUM, comm.world_group())
    return is_served, again, np.unique(memory.as_numpy(tensor)).tolist()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_of_one_host_read_each_other(dist_run, ranks):
    total = [ranks * (ranks + 1) / 2]
    assert dist_run(readers_worker, ranks=ranks, hidden_rank=None) == [(True, True, total)] * ranks


@pytest.mark.parametrize("ranks", [2, 3])
def test_where_one_cannot_be_read_nobody_reads(dist_run, ranks):
    found = dist_run(readers_worker, ranks=ranks, hidden_rank=1)
    assert found == [(False, False, [rank + 1.0]) for rank in range(ranks)]


def off_worker():
    env.put("MINDSPEED_MS_PEER_MEMORY", "0")
    try:
        return PeerMemory().serves(comm.world_group())
    finally:
        env.remove("MINDSPEED_MS_PEER_MEMORY")


def test_it_can_be_turned_off(dist_run):
    assert dist_run(off_worker, ranks=2) == [False, False]


def test_the_memory_of_a_process_that_ended_is_an_error():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    place = np.empty(1, np.int64)
    with pytest.raises(OSError, match=f"cannot read the memory of process {child.pid}"):
        PeerMemory()._read(child.pid, place.ctypes.data, place.ctypes.data, 8)
