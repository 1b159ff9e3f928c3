# SPDX-License-Identifier: Apache-2.0
"""Folders that the hosts of a job share, and files that every host must have.

Rank 0 decides what is saved where and what is loaded; a host that does not see the same would find
out in the middle of a save, or load something else.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mindspeed_ms.backend import comm

T = TypeVar("T")

PROBE = ".probe-"
"""Begins the names of files that only try a folder; a run removes what a kill left of them."""
_PATIENCE_SECONDS = 3.0
"""A network file system may show a new file to other hosts with this delay."""
_LOOK_SECONDS = 0.2
_MOST_SHOWN = 4


def first_rank_decides(decide: Callable[[], T]) -> T:
    """What rank 0 finds, or the error it meets, on all ranks.

    Raises:
        ValueError: rank 0 has raised it, of the same kind; or an OSError.

    Parallelism: collective over the world.
    """
    if comm.get_world_size() == 1:
        return decide()
    answer: tuple[T | None, type[ValueError] | None, str] = (None, None, "")
    if comm.get_rank() == 0:
        try:
            answer = (decide(), None, "")
        except ValueError as error:
            answer = (None, type(error), str(error))
        except OSError as error:
            answer = (None, ValueError, str(error))
    value, kind, problem = comm.broadcast_object(answer, 0)
    if kind is not None:
        raise kind(problem)
    return value


def require_shared(folder: Path) -> None:
    """Check that a folder of checkpoints is the same on all hosts; it is made if it is not there.

    Raises:
        ValueError: it cannot be made, or a host has another one of this name.

    Parallelism: collective over the world.
    """
    if _num_hosts() == 1:
        return
    probe = folder / f"{PROBE}{uuid.uuid4().hex}"

    def make() -> Path:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
        except OSError as error:
            raise ValueError(
                f"the checkpoint folder {folder} cannot be written on {platform.node()} "
                f"({error.strerror}); give --save a folder that all hosts can write"
            ) from None
        return probe

    probe = first_rank_decides(make)
    problem = None if _appears(probe.exists) else "it is another folder"
    missing = _problems(problem)
    if comm.get_rank() == 0:
        probe.unlink(missing_ok=True)
    if missing:
        raise ValueError(
            f"the checkpoint folder {folder} is not shared: what rank 0 writes there does not "
            f"appear on {'; '.join(missing)}; give --save a folder on a disk of all hosts"
        )


def require_everywhere(path: Path) -> None:
    """Check that every host has the same files of a checkpoint as rank 0's.

    Raises:
        ValueError: a host lacks files; the message names them.

    Parallelism: collective over the world.
    """
    if _num_hosts() == 1:
        return
    host, listed = first_rank_decides(lambda: (platform.node(), _sizes(path)))
    problem = None
    if not _appears(lambda: _sizes(path).items() >= listed.items()):
        own = _sizes(path)
        problem = _lacking([name for name, size in listed.items() if own.get(name) != size], own)
    lacking = _problems(problem)
    if lacking:
        raise ValueError(
            f"the checkpoint {path}, which is there on {host} (rank 0), is not complete on "
            f"{'; '.join(lacking)}; put it on a disk of all hosts, or copy it"
        )


def _lacking(names: Sequence[str], own: dict[str, int]) -> str:
    if not own:
        return "nothing of it is there"
    shown = ", ".join(names[:_MOST_SHOWN])
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"missing, or of another size: {shown}{more}"


def _sizes(path: Path) -> dict[str, int]:
    """Size of every file below a path, by its relative name; of a file itself under its name."""
    if path.is_file():
        return {path.name: path.stat().st_size}
    found = {}
    for folder, _, files in os.walk(path):
        for name in files:
            file = Path(folder, name)
            try:
                found[str(file.relative_to(path))] = file.stat().st_size
            except OSError:  # it has just been removed
                continue
    return found


def _appears(is_there: Callable[[], bool]) -> bool:
    """Whether something is seen on this host, perhaps a little later."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _num_hosts() -> int:
    if comm.get_world_size() == 1:
        return 1
    return sum(comm.all_gather_object(comm.get_local_rank() == 0))


def _problems(problem: str | None) -> list[str]:
    """The problems of all ranks, one text for each host."""
    views = comm.all_gather_object((platform.node(), problem))
    hosts: dict[tuple[str, str], list[int]] = {}
    for rank, (host, text) in enumerate(views):
        if text is not None:
            hosts.setdefault((host, text), []).append(rank)
    return [
        f"{host} (rank {', '.join(map(str, ranks))}): {text}"
        for (host, text), ranks in hosts.items()
    ]
