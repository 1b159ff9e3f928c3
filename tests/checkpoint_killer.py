# SPDX-License-Identifier: Apache-2.0
"""Saves checkpoints in child processes and kills one at another point each time; see its test.

Usage: python checkpoint_killer.py FOLDER CONTAINER EVERY RANKS. Prints one JSON line: how many
points there were, and what a restart found after each kill. Every n-th point is tried, of each
rank; once with older checkpoints in the folder and once in an empty one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core.dist_checkpointing.live_state import LiveTensor
from mindspeed_ms.core.dist_checkpointing.opener import find_together
from mindspeed_ms.core.dist_checkpointing.retention import continued_run
from mindspeed_ms.core.dist_checkpointing.saver import CheckpointSaver, SaveSettings, Snapshot
from mindspeed_ms.formats import own_format
from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.formats.find import OnlyTornError, find_checkpoint, open_checkpoint
from mindspeed_ms.plan.region import Region, Span
from mindspeed_ms.training.checkpoint_config import spec_of

CALLS = ("write", "pwrite", "fsync", "replace", "unlink", "rmdir", "open", "mkdir", "ftruncate")
KILLED, LEFT_ALONE = 9, 3


def tensors(value):
    """Three tensors that hold a number everywhere."""
    return [
        LiveTensor(
            name=name,
            kind="",
            shape=(size,),
            dtype="F32",
            span=Span.all_of(Region.whole((size,))),
            tensor=memory.from_numpy(np.full(size, value, np.float32)),
        )
        for name, size in (("a", 300), ("b", 7000), ("c", 1))
    ]


def run(folder, container, saves):
    """A run as training does it: take the folder, go on from the newest, save, leave."""
    settings = SaveSettings(root=folder, container=container, keep=2, crc_check=True)
    saver = CheckpointSaver(settings)
    saver.open()
    try:
        found = find_together(folder)
    except OnlyTornError:
        found = None
    run = (found and continued_run(folder, found.iteration)) or secrets.token_hex(8)
    for iteration, value in saves:
        common = {"iteration": iteration, "value": value, own_format.RUN: run}
        saver.save(
            tensors(value),
            Snapshot(iteration=iteration, common=common, rank_state={}, config="a: 1\n"),
        )
    saver.abandon()


def die_at(point):
    """Make the process kill itself at its n-th call that changes the disk."""
    count = 0

    def counted(function, is_open):
        def call(*args, **kwargs):
            nonlocal count
            if not is_open or (len(args) > 1 and args[1] & os.O_CREAT):
                count += 1
                if count == point:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name), name == "open"))


def check(folder):
    """The newest checkpoint is complete and holds one number everywhere; return that.

    0 where a restart begins anew, because no checkpoint has been completed.
    """
    try:
        found = find_checkpoint(folder)
    except OnlyTornError:
        return 0
    if found is None:
        return 0
    catalog = open_checkpoint(found, spec_of)
    with TensorReader() as reader:  # compares the files' checksums
        for name in ("a", "b", "c"):
            values = reader.read(catalog.tensors[name])
            assert (values == catalog.common["value"]).all(), (name, values[:3])
    assert catalog.common["iteration"] == found.iteration
    return catalog.common["value"]


def join_ranks(rank, connection):
    """Let this process be one of two ranks that talk through a pipe."""

    def all_gather_object(mine, group=None):
        connection.send(mine)
        other = connection.recv()
        return [mine, other] if rank == 0 else [other, mine]

    comm.get_rank = lambda: rank
    comm.get_world_size = lambda: 2
    comm.all_gather_object = all_gather_object
    comm.broadcast_object = lambda mine, source=0, group=None: all_gather_object(mine)[source]


def start(work, ranks, victim=None, point=0):
    """Do some work in so many processes; one may die at a point. Whether all came to their end.

    A rank whose neighbour has died ends too.
    """
    ends = multiprocessing.Pipe() if ranks == 2 else (None, None)
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                if ranks == 2:
                    ends[1 - rank].close()
                    join_ranks(rank, ends[rank])
                if rank == victim:
                    die_at(point)
                work()
                status = 0
            except (EOFError, ConnectionError):
                status = LEFT_ALONE
            finally:
                os._exit(status)
        pids.append(pid)
    for end in ends:
        if end is not None:
            end.close()
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert set(statuses) <= {0, -KILLED, LEFT_ALONE}, statuses
    return set(statuses) == {0}


def tried(root, container, every, ranks, before):
    """What a restart found after a kill at every point, and how many points there were."""
    seen, most = [], 0
    for victim in range(ranks):
        point, is_over = 1 - every, False
        while not is_over:
            point += every
            folder = root / "run"
            shutil.rmtree(folder, ignore_errors=True)
            if before is not None:
                shutil.copytree(before, folder)
            # The second is saved again, as after a resume from before it.
            saves = [(3, 3), (3, 4), (5, 5)]
            is_over = start(partial(run, folder, container, saves), ranks, victim, point)
            seen.append(check(folder))
            assert start(partial(run, folder, container, [(6, 6)]), ranks)
            assert check(folder) == 6
            left = sorted(item.name for item in folder.glob("iter_*"))
            assert len(left) <= 2, left
            names = sorted(item.name for item in folder.iterdir() if item.is_file())
            assert names == ["latest_checkpointed_iteration.txt"], names
        most = max(most, point)
    return seen, most


def main():
    root, container = Path(sys.argv[1]), sys.argv[2]
    every, ranks = int(sys.argv[3]), int(sys.argv[4])
    comm.init_process_group()
    before = root / "before"
    run(before, container, [(1, 1), (2, 2)])
    with_older, points = tried(root, container, every, ranks, before)
    first, _ = tried(root, container, every, ranks, None)
    report = {"points": points, "with_older": with_older, "first": first}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
