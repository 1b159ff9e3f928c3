# SPDX-License-Identifier: Apache-2.0
"""The only reader and writer of environment variables."""

from __future__ import annotations

import os

from mindspeed_ms.backend import launcher


def get(name: str, default: str | None = None) -> str | None:
    """Value of an environment variable, or ``default``."""
    return os.environ.get(name, default)


def get_int(name: str, default: int | None = None) -> int | None:
    """Value of an environment variable as an integer.

    Raises:
        ValueError: the variable is set to something that is not an integer.
    """
    value = os.environ.get(name)
    if value is None or value == "":
        return default
    try:
        return int(value)
    except ValueError:
        raise ValueError(
            f"environment variable {name} is {value!r}; it must be an integer: correct or unset it"
        ) from None


DRY_RUN = "MINDSPEED_MS_DRY_RUN"
"""Turns what would train into a plan, as ``--dry-run`` does, for scripts that pass no flags on."""

DRY_RUN_RANKS = "MINDSPEED_MS_DRY_RUN_RANKS"
"""Ranks that a launcher would have started."""


def is_dry_run() -> bool:
    """Whether ``MINDSPEED_MS_DRY_RUN`` asks for a plan."""
    return (get(DRY_RUN) or "").strip().lower() not in ("", "0", "false", "no", "off")


def names() -> list[str]:
    """Names of all variables that are set."""
    return list(os.environ)


def put(name: str, value: str | int) -> None:
    """Set a variable for this process and its children."""
    os.environ[name] = str(value)


def set_default(name: str, value: str | int) -> None:
    """Set a variable unless the user has already chosen a value."""
    os.environ.setdefault(name, str(value))


def remove(name: str) -> None:
    """Remove a variable if it is set."""
    os.environ.pop(name, None)


def stated_rank() -> int:
    """Rank of this process as far as variables tell; -1 for the scheduler of ``msrun``."""
    if get("MS_ROLE") == "MS_SCHED":
        return -1
    names = ("RANK", "MS_NODE_ID", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "RANK_ID")
    return next((int(get(name) or 0) for name in names if (get(name) or "").isdecimal()), 0)


def ranks_of_this_host(by_table: int | None = None) -> int:
    """Processes that share this host's cores, as far as the launcher tells before the job starts.

    Where it tells only the number of workers on all hosts, that is the answer.

    Args:
        by_table: what a rank table says, for ranks that a launch script starts.
    """
    names = ["MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"]
    parent = launcher.find()
    if parent is not None and parent.local_ranks is not None:
        return max(1, parent.local_ranks)
    tasks = tasks_of_this_node()
    if tasks is not None:
        return tasks
    if get("MS_ROLE"):
        names.append("MS_WORKER_NUM")
    elif by_table is not None:
        return max(1, by_table)
    return max(1, *(get_int(name) or 1 for name in names))


def tasks_of_this_node() -> int | None:
    """Tasks that ``srun`` started on this host; None outside of ``srun``."""
    if get("SLURM_STEP_ID") is None or get("SLURM_PROCID") is None:
        return None
    counts: list[int] = []
    for part in (get("SLURM_STEP_TASKS_PER_NODE") or "").split(","):  # "4(x2),1"
        count, _, times = part.rstrip(")").partition("(x")
        if count.isdigit():
            counts += [int(count)] * int(times or 1)
    node = get_int("SLURM_NODEID") or 0
    return max(1, counts[node]) if node < len(counts) else None


def prepare_import(by_table: int | None = None) -> None:
    """Defaults that libraries read while they load, so they must precede ``import mindspore``.

    MindSpore logs deprecations of its own code at its default level. The ranks of a host share its
    cores; more threads than cores, or threads that spin while they wait, starve the others.

    Args:
        by_table: ranks of this host, by a rank table.
    """
    set_default("GLOG_v", "3")
    set_default("OMP_WAIT_POLICY", "passive")
    threads = max(1, len(os.sched_getaffinity(0)) // ranks_of_this_host(by_table))
    set_default("OMP_NUM_THREADS", threads)
    set_default("OPENBLAS_NUM_THREADS", threads)
