# SPDX-License-Identifier: Apache-2.0
"""How much memory this host, or the container, still gives to a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_UNLIMITED = 1 << 60
"""Limits from here on mean none."""


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
