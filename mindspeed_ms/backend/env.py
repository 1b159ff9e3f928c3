"""The only reader and writer of environment variables."""

from __future__ import annotations

import os


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


def put(name: str, value: str | int) -> None:
    """Set a variable for this process and its children."""
    os.environ[name] = str(value)


def set_default(name: str, value: str | int) -> None:
    """Set a variable unless the user has already chosen a value."""
    os.environ.setdefault(name, str(value))


def remove(name: str) -> None:
    """Remove a variable if it is set."""
    os.environ.pop(name, None)


def ranks_of_this_host() -> int:
    """Processes that share this host's cores, as far as the launcher tells before the job starts.

    ``msrun`` and rank tables tell only the number on all hosts, so with several it is too high.
    """
    names = ["MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"]
    if get("MS_ROLE"):
        names.append("MS_WORKER_NUM")
    elif get("RANK_ID"):
        names.append("RANK_SIZE")
    return max(1, *(get_int(name) or 1 for name in names))


def prepare_import() -> None:
    """Defaults that libraries read while they load, so they must precede ``import mindspore``.

    MindSpore logs deprecations of its own code at its default level. The ranks of a host share its
    cores; more threads than cores, or threads that spin while they wait, starve the others.
    """
    set_default("GLOG_v", "3")
    set_default("OMP_WAIT_POLICY", "passive")
    threads = max(1, len(os.sched_getaffinity(0)) // ranks_of_this_host())
    set_default("OMP_NUM_THREADS", threads)
    set_default("OPENBLAS_NUM_THREADS", threads)
