# SPDX-License-Identifier: Apache-2.0
"""How much memory this host, or the container, still gives to a process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_UNLIMITED = 1 << 60
"""Limits from here on mean none."""


SHARED_MEMORY = Path("/dev/shm")
_LEAST_SHARED = 1_100_000
"""Bytes that MPI takes there for each rank at its start: less ends it with a bus error."""
_ENOUGH_SHARED = 6_000_000
"""With what it takes later. Between the two it may do with less, or end with a segmentation
fault; measured with MPICH 5.0.2 and 2 to 4 ranks."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """What is left."""

    num_bytes: int
    limit: str
    """What sets the limit, in words."""


def free_memory(root: Path = Path("/")) -> FreeMemory:
    """Memory that may still be taken without swapping: of the host, or of a control group.

    Args:
        root: where ``proc`` and ``sys`` lie.

    Source: Linux kernel ``admin-guide/cgroup-v2`` and ``cgroup-v1/memory`` (files).
    """
    host = FreeMemory(psutil.virtual_memory().available, "this host")
    return min([host, *_of_groups(root)], key=lambda item: item.num_bytes)


def require_shared_memory(ranks: int, is_first: bool, folder: Path = SHARED_MEMORY) -> None:
    """Refuse to start MPI where its shared memory has no room; warn where that may come out later.

    Args:
        ranks: on this host.
        is_first: of them; it counts what is free and warns. The others may come when it has taken
            its part, and count all there is.
        folder: where shared memory lies; nothing is known where there is none.

    Raises:
        RuntimeError: there is too little for a start.
    """
    try:
        found = os.statvfs(folder)
    except OSError:
        return
    free = (
        0
        if found.f_flag & os.ST_RDONLY
        else found.f_frsize * (found.f_bavail if is_first else found.f_blocks)
    )
    text = (
        f"{folder} has {free / 1e6:.1f} MB of shared memory, but MPI may take "
        f"{_ENOUGH_SHARED * ranks / 1e6:.0f} MB for {ranks} ranks of this host; make it larger "
        "(docker run --shm-size=1g), or remove what fills it"
    )
    if free < _LEAST_SHARED * ranks:
        raise RuntimeError(text)
    if is_first and free < _ENOUGH_SHARED * ranks:
        logger.warning("WARNING: %s", text)


def _of_groups(root: Path) -> Iterator[FreeMemory]:
    """What each control group around this process leaves."""
    for folder, names in _folders(root):
        try:
            limit = int((folder / names[0]).read_text())
            used = int((folder / names[1]).read_text())
            cached = _counted(folder / "memory.stat", names[2])
        except (OSError, ValueError):  # not there, or "max"
            continue
        if limit < _UNLIMITED:
            # What only caches files is given back when somebody needs it.
            yield FreeMemory(max(0, limit - used + cached), f"the control group {folder}")


_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def _folders(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Folders of the groups, from the innermost outwards, and the names of their files."""
    mounts = root / "sys" / "fs" / "cgroup"
    try:
        lines = os.fsdecode((root / "proc" / "self" / "cgroup").read_bytes()).splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            bases, names = [mounts, mounts / "unified"], _V2
        elif "memory" in controllers.split(","):
            bases, names = [mounts / "memory"], _V1
        else:
            continue
        for base in bases:
            folder = base / path.lstrip("/")
            # Within a container the path may be that of the host, of which only the top is there.
            while folder != base.parent:
                yield folder, names
                folder = folder.parent


def _counted(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
