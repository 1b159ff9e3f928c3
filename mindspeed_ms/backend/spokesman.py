# SPDX-License-Identifier: Apache-2.0
"""Which process of a host tells the user what every rank would tell, before the ranks have joined.

A wrong command line is wrong on every rank; one of them says so. The first rank of each host does,
the others keep quiet and end after it: a launcher that sees a rank end may kill those still alive,
the one with the message among them.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil

from mindspeed_ms.backend import env, launch

PATIENCE_SECONDS = 10.0
"""How long a rank waits for the first of its host before it speaks for itself."""

_LAUNCHERS = (
    ("MS_ROLE", "DEVICE_ID"),
    ("MPI_LOCALRANKID", "MPI_LOCALRANKID"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_LOCALID", "SLURM_LOCALID"),
    ("LOCAL_RANK", "LOCAL_RANK"),
)
"""What shows who launched a process, and where its place among those of its host stands. In this
order: what an outer launcher or an earlier job has set may still be there."""


def _local_rank(value_of: Callable[[str], str | None]) -> str | None:
    return next((value_of(place) for sign, place in _LAUNCHERS if value_of(sign)), None)


def is_first_of_host() -> bool:
    """Whether this process speaks for the ranks of its host."""
    told = launch.told_by_launcher()
    if told is None or told[0] == 0:
        return True
    if told[0] < 0:  # the scheduler of msrun
        return False
    return _local_rank(env.get) == "0"


def is_told_by_another(patience: float = PATIENCE_SECONDS) -> bool:
    """Whether another process of this host has told what this one has to tell.

    Returns once the speaking process has ended. When it goes on, what it found differs, and this
    process has to tell its own.
    """
    if is_first_of_host():
        return False
    speakers = _speakers()
    _, alive = psutil.wait_procs(speakers, timeout=patience)
    return not alive


def _speakers() -> list[psutil.Process]:
    """Living processes that this one's launcher started and that speak.

    A launcher's other children, which show logs, inherit the variables of a rank.
    """
    me = psutil.Process()
    parent = me.parent()
    found = []
    for child in parent.children() if parent is not None else ():
        try:
            if child.exe() != me.exe():
                continue
            variables = child.environ()
        except psutil.Error:
            continue
        if _local_rank(variables.get) == "0" and variables.get("MS_ROLE") != "MS_SCHED":
            found.append(child)
    return found
