"""Saves checkpoints in child processes and kills each at another point: see the test that runs it.

Usage: python checkpoint_killer.py FOLDER CONTAINER EVERY. Prints one JSON line: how many points,
and what the newest checkpoint held after each kill. Every n-th point is tried.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core.dist_checkpointing.live_state import LiveTensor
from mindspeed_ms.core.dist_checkpointing.saver import CheckpointSaver, SaveSettings, Snapshot
from mindspeed_ms.formats import own_format
from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.formats.containers.new_file import FileRecord
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.plan.region import Region, Span
from mindspeed_ms.training.checkpoint_config import spec_of

CALLS = ("write", "fsync", "replace", "unlink", "rmdir", "open", "mkdir")


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


def save(folder, container, iteration, value):
    settings = SaveSettings(root=folder, container=container, keep=2, crc_check=True)
    common = {"iteration": iteration, "value": value}
    CheckpointSaver(settings).save(
        tensors(value),
        Snapshot(iteration=iteration, common=common, rank_state={}, config="a: 1\n"),
    )


def die_at(point):
    """Make the process kill itself at its n-th call that touches the disk."""
    count = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def check(folder):
    """The newest checkpoint is complete and holds one number everywhere; return that."""
    found = find_checkpoint(folder)
    catalog = open_checkpoint(found, spec_of)
    for name, file in catalog.common["files"].items():
        record = FileRecord(file["bytes"], file["crc32"])
        own_format.verify_file(found.folder / name, record, with_crc=True)
    with TensorReader() as reader:
        for name in ("a", "b", "c"):
            values = reader.read(catalog.tensors[name])
            assert (values == catalog.common["value"]).all(), (name, values[:3])
    assert catalog.common["iteration"] == found.iteration
    return catalog.common["value"]


def child(folder, container, point):
    die_at(point)
    save(folder, container, 3, 3)
    save(folder, container, 3, 4)  # again, as after a resume from before
    save(folder, container, 5, 5)
    os._exit(0)


def main():
    root, container, every = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    comm.init_process_group()
    start = root / "start"
    save(start, container, 1, 1)
    save(start, container, 2, 2)
    seen, point = [], 1 - every
    while True:
        point += every
        folder = root / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        pid = os.fork()
        if pid == 0:
            child(folder, container, point)
        status = os.waitpid(pid, 0)[1]
        seen.append(check(folder))
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        save(folder, container, 6, 6)  # the next run saves over what was left behind
        assert check(folder) == 6
        left = sorted(item.name for item in folder.glob("iter_*"))
        assert len(left) == 2, left
    sys.stdout.write(json.dumps({"points": point, "values": seen}) + "\n")


if __name__ == "__main__":
    main()
