# SPDX-License-Identifier: Apache-2.0
"""Ranks that read each other's memory, and what they do where they cannot.

``test_comm_contract`` shows that every collective gives the right numbers along both ways.
"""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest

from mindspeed_ms.backend import comm, env, memory, peer_memory
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


def window_worker(window):
    """Sums of many sizes, one after the other, against those of one process, bit for bit."""
    rank, size, world = comm.get_rank(), comm.get_world_size(), comm.world_group()
    kept, peer_memory._WINDOW_BYTES = peer_memory._WINDOW_BYTES, window
    peers, wrong = PeerMemory(), []
    try:
        assert peers.serves(world)
    finally:
        peer_memory._WINDOW_BYTES = kept
    rng = np.random.RandomState(1)  # the same on every rank
    for count in (1, 63, 64, 1000, 4096, 4097, 12345):
        for dtype, op in ((np.float32, "SUM"), (np.float16, "SUM"), (np.float32, "AVG")):
            every = rng.randn(size, count * size).astype(dtype)
            wide = every.astype(np.float32)
            total = functools.reduce(np.add, wide)
            want = (total / np.float32(size) if op == "AVG" else total).astype(dtype)
            whole = memory.from_numpy(every[rank].copy())
            part = memory.from_numpy(np.zeros(count, dtype))
            flat, piece = memory.flat_view(whole), memory.flat_view(part)
            peers.reduce_scatter(piece, flat, whole, comm.ReduceOp[op], world)
            peers.all_reduce(flat, whole, comm.ReduceOp[op], world)
            mine = want[rank * count : (rank + 1) * count]
            if flat.tobytes() != want.tobytes() or piece.tobytes() != mine.tobytes():
                wrong.append((count, str(dtype), op))
            peers.reduce_scatter(
                flat[rank * count :][:count], flat, whole, comm.ReduceOp.MAX, world
            )
            if flat[rank * count :][:count].tobytes() != mine.tobytes():
                wrong.append((count, "in place"))
    return wrong


@pytest.mark.parametrize("ranks", [2, 3])
def test_pieces_of_sums_follow_each_other(dist_run, ranks):
    assert dist_run(window_worker, ranks=ranks, window=2048) == [[]] * ranks


def test_what_cannot_be_mapped_is_not_shared(tmp_path):
    assert peer_memory._mapped(str(tmp_path / "none"), 64) is None
