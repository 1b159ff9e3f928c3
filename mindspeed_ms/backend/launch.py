"""How this process was started, and what follows from it for its communication.

==========================  =====================================================================
started by                  what happens
==========================  =====================================================================
``python script``           one rank, no library
``msrun`` on CPU            the scheduler process runs ``JobServer``; workers join it, start MPI
``mpiexec -n N`` on CPU     MPI starts first; rank 0 then runs the ``JobServer`` in a thread
``srun -n N``               task 0 starts a scheduler process; from there on as under ``msrun``
``RANK_ID``, ``RANK_SIZE``  the same, started by rank 0 (see ``rank_table``)
Ascend                      ``mindspore.mint.distributed`` does it all
==========================  =====================================================================

With several CPU ranks an exception nobody catches ends the whole job, and so does the death of a
rank; a normal end finalizes MPI.
"""

from __future__ import annotations

import atexit
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import NoReturn

import psutil

from mindspeed_ms.backend import cpu_mpi, device, env, rank_table, slurm
from mindspeed_ms.backend.ascend import AscendComm
from mindspeed_ms.backend.base import Comm
from mindspeed_ms.backend.job_client import (
    Assignment,
    JobClient,
    end_process,
    remove_mapped_segments,
)
from mindspeed_ms.backend.job_server import JobServer
from mindspeed_ms.backend.single import SingleComm

_DEFAULT_TIMEOUT_SECONDS = 600
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""How ``mpiexec`` of MPICH (Hydra) and of Open MPI tells the number of ranks."""


@dataclass
class _Session:
    """What ties this process to a job of several processes."""

    client: JobClient
    assignment: Assignment
    server: JobServer | None = None
    mpi: ModuleType | None = None


@dataclass
class _Holder:
    session: _Session | None = None


_holder = _Holder()


def start() -> Comm:
    """Join the job and return the way to communicate in it.

    Raises:
        RuntimeError: the scheduler or MPI cannot be reached.
        ValueError: launch variables contradict each other.
    """
    slurm.prepare()
    if not env.get("MS_ROLE") and not _is_mpiexec():
        rank_table.prepare(with_devices=device.is_ascend())
    if device.is_ascend():
        comm: Comm = AscendComm()
        _export(comm.rank, env.get_int("DEVICE_ID", 0) or 0, comm.world_group.size)
        return comm
    if _holder.session is None:
        role = env.get("MS_ROLE")
        if role == "MS_SCHED":
            _serve_and_exit()
        if role == "MS_WORKER":
            _holder.session = _join_msrun()
        elif _is_mpiexec():
            _holder.session = _join_mpiexec()
    session = _holder.session
    if session is None:
        _export(0, 0, 1)
        return SingleComm()
    assignment = session.assignment
    _export(assignment.rank, assignment.local_rank, assignment.size)
    if session.mpi is None:
        return SingleComm()
    mpi_comm = cpu_mpi.MpiComm(session.mpi, _end_job)
    session.client.blocked_seconds = mpi_comm.clock.seconds
    return mpi_comm


def told_by_launcher() -> tuple[int, int] | None:
    """(rank, ranks) as the launcher's variables state them, without joining the job.

    None without a launcher; rank -1 for the scheduler of ``msrun``.
    """
    role = env.get("MS_ROLE")
    if role is not None:
        rank = -1 if role == "MS_SCHED" else env.get_int("MS_NODE_ID") or 0
        return rank, _num_workers()
    for size_name, rank_name in (
        ("PMI_SIZE", "PMI_RANK"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ):
        if (env.get_int(size_name) or 1) > 1:
            return env.get_int(rank_name) or 0, env.get_int(size_name) or 1
    if slurm.num_tasks() > 1:
        return env.get_int("SLURM_PROCID") or 0, slurm.num_tasks()
    return rank_table.told()


def _is_mpiexec() -> bool:
    return any((env.get_int(name) or 1) > 1 for name in _SIZE_VARIABLES)


def _export(rank: int, local_rank: int, size: int) -> None:
    """Publish the rank under the names scripts and libraries look for."""
    for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", size)):
        env.put(name, value)
    env.set_default("MASTER_ADDR", env.get("MS_SCHED_HOST") or "127.0.0.1")
    env.set_default("MASTER_PORT", env.get("MS_SCHED_PORT") or "0")


def _scheduler_address() -> tuple[str, int]:
    host, port = env.get("MS_SCHED_HOST"), env.get_int("MS_SCHED_PORT")
    if not host or port is None:
        raise RuntimeError(
            "MS_ROLE is set, but MS_SCHED_HOST or MS_SCHED_PORT is not; start the script with "
            "msrun, or unset MS_ROLE for a single process"
        )
    return host, port


def _num_workers() -> int:
    size = env.get_int("MS_WORKER_NUM")
    if size is None or size < 1:
        raise RuntimeError(
            f"MS_ROLE is set, but MS_WORKER_NUM is {size}; start the script with msrun, or unset "
            "MS_ROLE for a single process"
        )
    return size


def _timeout() -> float:
    seconds = env.get_int("MS_TOPO_TIMEOUT")
    return _DEFAULT_TIMEOUT_SECONDS if seconds is None else seconds


def _serve_and_exit() -> NoReturn:
    """The scheduler of ``msrun``: serve the job, then end this process."""
    host, port = _scheduler_address()
    server = JobServer(_num_workers(), host, port, _timeout())
    failure = server.serve(_WorkerWatch().check)
    if failure is not None:
        end_process(f"the job ends because {failure}")
    raise SystemExit(0)


class _WorkerWatch:
    """Notices workers of this host that end before they have connected to the scheduler."""

    def __init__(self) -> None:
        self._me = psutil.Process()
        self._seen: dict[int, str] = {}
        self._num_empty = 0

    def check(self, server: JobServer) -> str | None:
        """What ends the job, if anything does (see ``JobServer.serve``)."""
        launcher = self._me.parent()
        if launcher is None:
            return None
        alive = _worker_ranks(launcher)
        joined = server.joined_pids()
        for pid, rank in self._seen.items():
            if pid not in alive and pid not in joined:
                return f"rank {rank} (pid {pid}) ended before it had connected; see its log"
        self._seen.update(alive)
        self._num_empty = 0 if alive or joined or not _is_msrun(launcher) else self._num_empty + 1
        if self._num_empty > 3:
            return "every rank of this host ended before it had connected; see the workers' logs"
        return None


def _children(parent: psutil.Process) -> dict[int, dict[str, str]]:
    """Environment of the living children of a process, by process id."""
    found = {}
    for child in parent.children():
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                found[child.pid] = child.environ()
        except psutil.Error:
            continue
    return found


def _worker_ranks(launcher: psutil.Process) -> dict[int, str]:
    """Rank by process id of the living workers that ``launcher`` has started."""
    return {
        pid: variables.get("MS_NODE_ID", "(unnumbered)")
        for pid, variables in _children(launcher).items()
        if variables.get("MS_ROLE") == "MS_WORKER"
    }


def _is_msrun(process: psutil.Process) -> bool:
    try:
        return any("msrun" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _join_msrun() -> _Session:
    """A worker of ``msrun``: get a rank from the scheduler, then start MPI through it."""
    host, port = _scheduler_address()
    size = _num_workers()
    # RANK_ID is no guide: without --node_rank workers inherit the scheduler's.
    wish = env.get_int("MS_NODE_ID")
    client = JobClient(host, port, _timeout())
    assignment = client.join(size, wish, env.get_int("DEVICE_ID"))
    session = _Session(client, assignment)
    env.put("RANK_ID", assignment.rank)
    _protect(session)
    if size > 1:
        cpu_mpi.prepare_waiting()
        env.put("PMI_PORT", f"{host}:{port}")
        env.put("PMI_ID", assignment.rank)
        session.mpi = _start_mpi()
        for name in ("PMI_PORT", "PMI_ID"):  # children of this rank are no MPI processes
            env.remove(name)
    return session


def _start_mpi() -> ModuleType:
    """Start MPI; then hide its shared memory, so that no end of the job can leave it behind."""
    mpi = cpu_mpi.load_mpi()
    mpi.COMM_WORLD.Barrier()  # every rank of this host has mapped it now
    remove_mapped_segments()
    return mpi


def _join_mpiexec() -> _Session:
    """A process of ``mpiexec``: MPI knows the rank; the job server only watches over the ranks."""
    local_size = env.get_int("MPI_LOCALNRANKS") or env.get_int("OMPI_COMM_WORLD_LOCAL_SIZE") or 1
    cpu_mpi.prepare_waiting()
    has_started = threading.Event()
    watch = threading.Thread(target=_watch_siblings, args=(local_size, has_started), daemon=True)
    watch.start()
    mpi = _start_mpi()
    has_started.set()
    world = mpi.COMM_WORLD
    server = None
    address = ("", 0)
    if world.rank == 0:
        host = (
            "127.0.0.1" if local_size == world.size else socket.gethostbyname(socket.gethostname())
        )
        server = JobServer(world.size, host)
        server.start_thread()
        address = (host, server.port)
    host, port = world.bcast(address, root=0)
    client = JobClient(host, port, _DEFAULT_TIMEOUT_SECONDS)
    session = _Session(client, client.join(world.size, world.rank, None), server, mpi)
    _protect(session)
    return session


def _watch_siblings(local_size: int, has_started: threading.Event) -> None:
    """End this process if another rank of this host ends before MPI has started.

    Hydra lets the remaining ranks wait for it for ever. Ranks are the children of its proxy.
    """
    proxy = psutil.Process().parent()
    while proxy is not None and not has_started.wait(1.0):
        alive = {variables.get("PMI_RANK") for variables in _children(proxy).values()}
        if len(alive) < local_size:
            missing = [str(rank) for rank in range(local_size) if str(rank) not in alive]
            remove_mapped_segments()
            end_process(f"rank {', '.join(missing)} ended before MPI had started; see its log")


def _protect(session: _Session) -> None:
    """From here on the end of this process, good or bad, is everybody's business."""
    sys.excepthook = _ending_excepthook(sys.excepthook, session)
    atexit.register(_leave, session)


def _ending_excepthook(
    previous: Callable[[type[BaseException], BaseException, TracebackType | None], object],
    session: _Session,
) -> Callable[[type[BaseException], BaseException, TracebackType | None], object]:
    """An exception hook that reports as ``previous`` does and then ends the job."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        previous(kind, error, trace)
        first_line = (str(error).splitlines() or [""])[0]
        _fail(session, f"{kind.__name__}: {first_line}")

    return hook


def _end_job(message: str) -> NoReturn:
    assert _holder.session is not None, "the job has a session once MPI runs"
    _fail(_holder.session, message)


def _fail(session: _Session, reason: str) -> NoReturn:
    sys.stdout.flush()
    session.client.abort(reason)
    remove_mapped_segments()
    end_process(f"rank {session.assignment.rank} failed: {reason}")


def _leave(session: _Session) -> None:
    """Runs at exit. MPI's finalization is collective, so all ranks enter it together."""
    may_finalize = session.client.leave()
    if may_finalize and session.mpi is not None:
        cpu_mpi.finalize(session.mpi)
