# SPDX-License-Identifier: Apache-2.0
"""How this process was started, and what follows from it for its communication.

==========================  =====================================================================
started by                  what happens
==========================  =====================================================================
``python script``           one rank, no library
``msrun`` on CPU            the scheduler process runs ``JobServer``; workers join it, start MPI
``mindspeed-torchrun``      the same, without ``msrun``: the launcher starts scheduler and workers
``mpiexec -n N`` on CPU     MPI starts first; rank 0 then runs the ``JobServer`` in a thread
``srun -n N``               task 0 starts a scheduler process; from there on as under ``msrun``
``RANK_ID``, ``RANK_SIZE``  the same, started by rank 0 (see ``rank_table``)
``communication.init()``    (in the script) rank 0 runs the ``JobServer`` in a thread, then as above
Ascend                      ``mindspore.mint.distributed`` does it all
==========================  =====================================================================

With several CPU ranks an exception nobody catches ends the whole job, and so does the death of a
rank or of the launcher; a normal end finalizes MPI.
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import NoReturn

import psutil

from mindspeed_ms.backend import (
    addresses,
    cpu_mpi,
    device,
    env,
    host_memory,
    launcher,
    own_cluster,
    rank_table,
    scheduler,
    slurm,
)
from mindspeed_ms.backend.ascend import AscendComm
from mindspeed_ms.backend.base import Comm
from mindspeed_ms.backend.job_client import (
    Assignment,
    JobClient,
    JobEndedError,
    end_process,
    has_verdict,
    note_verdict,
    remove_mapped_segments,
    report_gone,
)
from mindspeed_ms.backend.job_server import JobServer, remove_abandoned_memory
from mindspeed_ms.backend.progress import here
from mindspeed_ms.backend.single import SingleComm

_DEFAULT_TIMEOUT_SECONDS = 600
_PLACE_SECONDS = 5.0
_PATIENCE_SECONDS = 10.0
_SILENT_SECONDS = 5.0
_MOST_WORKERS = 1 << 16
_SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""How ``mpiexec`` of MPICH (Hydra) and of Open MPI tells the number of ranks."""


@dataclass
class _Session:
    """What ties this process to a job of several processes."""

    client: JobClient
    assignment: Assignment
    server: JobServer | None = None
    mpi: ModuleType | None = None
    serves_beside: bool = False
    """The server is a thread of rank 0, and MPI was started through it."""
    pmi: int | None = None
    """Descriptor on which MPI speaks to the job server."""
    is_running: bool = False
    """Every rank has started, so that a run can save on SIGTERM."""


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
        if own_cluster.is_started():
            _join_beside_mindspore()
        elif role == "MS_SCHED":
            host, port = _scheduler_address()
            scheduler.serve_and_exit(_num_workers(), host, port, _timeout())
        elif role == "MS_WORKER":
            _join_msrun()
        elif _is_mpiexec():
            _join_mpiexec()
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


def set_limit(seconds: float) -> None:
    """How long a rank may be silent, or wait for the others, before the job ends."""
    if _holder.session is not None:
        _holder.session.client.set_limit(seconds)


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
    if size is None or not 1 <= size <= _MOST_WORKERS:
        raise RuntimeError(
            f"MS_ROLE is set, but MS_WORKER_NUM is {size}, not 1 to {_MOST_WORKERS}; start the "
            "script with msrun, or unset MS_ROLE for a single process"
        )
    return size


def _timeout() -> float:
    seconds = env.get_int("MS_TOPO_TIMEOUT")
    return _DEFAULT_TIMEOUT_SECONDS if seconds is None else seconds


def _join_msrun() -> _Session:
    """A worker of ``msrun``: get a rank from the scheduler, then start MPI through it."""
    host, port = _scheduler_address()
    size = _num_workers()
    launcher.watch(_on_launcher_end)
    _find_scheduler(host, size)
    # RANK_ID is no guide: without --node_rank workers inherit the scheduler's.
    wish = env.get_int("MS_NODE_ID")
    check = scheduler.WorkerWatch(host, port).lost
    place = scheduler.meeting_point(host, size)[1]
    try:
        client = JobClient(place, port, _timeout(), check=check)
        return _joined(client, client.join(size, wish, env.get_int("DEVICE_ID")))
    except JobEndedError as end:
        note_verdict(None, str(end))
        end_process(f"this process ends because {end}")


def _joined(client: JobClient, assignment: Assignment) -> _Session:
    """The session of a rank whose job server also starts MPI."""
    session = _holder.session = _Session(client, assignment)
    env.put("RANK_ID", assignment.rank)
    _protect(session)
    size = assignment.size
    if size > 1:
        addresses.confine_mpi(assignment.local_size == size, assignment.address)
        host_memory.require_shared_memory(assignment.local_size, assignment.local_rank == 0)
        cpu_mpi.prepare_waiting()
        session.pmi = client.open_pmi()
        cpu_mpi.connect_pmi(session.pmi, assignment.rank, size)
        session.mpi = _start_mpi(client)
        cpu_mpi.forget_pmi()
    client.tell_running()
    session.is_running = True
    return session


def _join_beside_mindspore() -> None:
    """Ranks that have met by ``mindspore.communication.init()``, whose scheduler is not ours."""
    rank, size = own_cluster.place()
    launcher.watch(_on_launcher_end)
    server, offer = None, None
    if rank == 0:
        secret = secrets.token_bytes(32)
        is_one_host = addresses.is_loopback(env.get("MS_SCHED_HOST") or "127.0.0.1")
        server = JobServer(size, "127.0.0.1" if is_one_host else "", secret=secret)
        server.start_thread()
        places = ["127.0.0.1"] if is_one_host else addresses.own_addresses()
        offer = [places, server.port, secret.hex()]
    places, port, text = own_cluster.from_first(offer)
    client = _reach(places, port, bytes.fromhex(text))
    session = _joined(client, client.join(size, rank, None))
    session.server, session.serves_beside = server, True


def _find_scheduler(host: str, size: int) -> None:
    """Start the scheduler where ``msrun`` does not: it takes 127.0.1.1 for another host's address.

    Raises:
        RuntimeError: the master's name leads a host that is not the master to itself.
    """
    parent = launcher.find()
    local_ranks = None if parent is None else parent.local_ranks
    is_master = (env.get_int("MS_NODE_ID") or 0) < (local_ranks or size)
    is_other = scheduler.msrun_serves(host) or not addresses.is_loopback(host)
    if parent is None or not parent.is_msrun or is_other:
        return
    if not is_master:
        raise RuntimeError(
            f"--master_addr is {host} on this host, which is not the master (rank "
            f"{env.get('MS_NODE_ID')}); give the master's address in the network"
        )
    if env.get_int("DEVICE_ID") == 0 and not scheduler.has_sibling():
        scheduler.start_process(local_ranks)


def _start_mpi(client: JobClient | None = None) -> ModuleType:
    """Start MPI; then hide its shared memory, so that no end of the job can leave it behind."""
    here.call, started = "start of MPI", time.monotonic()
    if client is not None:
        client.blocked_seconds = lambda: time.monotonic() - started
    mpi = cpu_mpi.load_mpi()
    mpi.COMM_WORLD.Barrier()  # every rank of this host has mapped it now
    remove_mapped_segments()
    if client is not None:
        client.blocked_seconds = float
    return mpi


def _join_mpiexec() -> _Session:
    """A process of ``mpiexec``: MPI knows the rank; the job server only watches over the ranks."""
    local_size = env.get_int("MPI_LOCALNRANKS") or env.get_int("OMPI_COMM_WORLD_LOCAL_SIZE") or 1
    size = max(env.get_int(name) or 1 for name in _SIZE_VARIABLES)
    launcher.watch(_on_launcher_end)
    if local_size == size:
        addresses.confine_mpi(is_one_host=True)
    cpu_mpi.prepare_waiting()
    remove_abandoned_memory()
    if local_size > 1:
        is_first = (env.get_int("MPI_LOCALRANKID") or 0) == 0
        host_memory.require_shared_memory(local_size, is_first)
    has_started = threading.Event()
    watch = threading.Thread(target=_watch_start, args=(local_size, has_started), daemon=True)
    watch.start()
    mpi = _start_mpi()
    has_started.set()
    world = mpi.COMM_WORLD
    server, offer = None, ([""], 0, b"")
    if world.rank == 0:
        secret = secrets.token_bytes(32)
        is_one_host = local_size == world.size
        server = JobServer(world.size, "127.0.0.1" if is_one_host else "", secret=secret)
        server.start_thread()
        places = ["127.0.0.1"] if is_one_host else addresses.own_addresses()
        offer = (places, server.port, secret)
    client = _reach(*world.bcast(offer, root=0))
    session = _Session(client, client.join(world.size, world.rank, None), server, mpi)
    _holder.session = session
    _protect(session)
    client.tell_running()
    world.Barrier()
    cpu_mpi.leave_hydra()
    session.is_running = True
    return session


def _reach(places: list[str], port: int, secret: bytes) -> JobClient:
    """A connection to the server of rank 0, over the first of its addresses that leads there."""
    for place in places[:-1]:
        try:
            return JobClient(place, port, _PLACE_SECONDS, secret)
        except RuntimeError:
            continue
    return JobClient(places[-1], port, _DEFAULT_TIMEOUT_SECONDS, secret)


def _watch_start(local_size: int, has_started: threading.Event) -> None:
    """End this process if another rank of this host ends before MPI has started.

    Hydra lets the remaining ranks wait for it for ever. Ranks are the children of its proxy.
    """
    proxy, deadline = psutil.Process().parent(), time.monotonic() + _DEFAULT_TIMEOUT_SECONDS
    while proxy is not None and not has_started.wait(1.0):
        alive = {variables.get("PMI_RANK") for variables in scheduler.children_of(proxy).values()}
        if len(alive) < local_size:
            missing = [str(rank) for rank in range(local_size) if str(rank) not in alive]
            remove_mapped_segments()
            end_process(f"rank {', '.join(missing)} ended before MPI had started; see its log")
        if time.monotonic() > deadline:
            end_process(f"MPI did not start within {_DEFAULT_TIMEOUT_SECONDS} s; a rank is missing")


# --- ends


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


def _end_job(message: str, blames_peer: bool = False) -> NoReturn:
    assert _holder.session is not None, "the job has a session once MPI runs"
    _fail(_holder.session, message, blames_peer)


def _fail(session: _Session, reason: str, blames_peer: bool = False) -> NoReturn:
    sys.stdout.flush()
    said = session.client.abort(reason, blames_peer)
    remove_mapped_segments()
    rank, silence = session.assignment.rank, session.client.silence_of_server()
    text = f"rank {rank} failed: {reason}"
    if said is not None and not said.startswith(text):
        note_verdict(None, said)
        end_process(f"rank {rank} stops because {said}")
    if said is None and silence > _SILENT_SECONDS:
        text += f"; the scheduler has not answered for {silence:.0f} s, so the network may be cut"
    note_verdict(rank, reason)
    end_process(text)


def _on_launcher_end(text: str) -> None:
    """Runs in a thread when the launcher has ended: this process does too, saving if it can."""
    session = _holder.session
    if session is not None and session.is_running and callable(signal.getsignal(signal.SIGTERM)):
        sys.stderr.write(f"WARNING: {text}\n")
        os.kill(os.getpid(), signal.SIGTERM)
        return
    if session is not None:
        _fail(session, text)
    _report_early_end(text)
    end_process(f"this process ends because {text}")


def _report_early_end(reason: str | None = None) -> None:
    """At the exit of a worker that has not joined: the others need not wait for it."""
    if _holder.session is not None or device.is_ascend():
        return
    error = getattr(sys, "last_value", None)
    if reason is None:
        first_line = (str(error).splitlines() or [""])[0]
        detail = f": {type(error).__name__}: {first_line}" if error is not None else "; see its log"
        reason = f"ended before it had connected{detail}"
    host, port, size = env.get("MS_SCHED_HOST"), env.get("MS_SCHED_PORT"), env.get("MS_WORKER_NUM")
    if host and port and port.isdigit() and size and size.isdigit():
        place = scheduler.meeting_point(host, int(size))[1]
        # The master may be slower than a rank that fails at its first line.
        patience = _PATIENCE_SECONDS if error is not None and place == host else 0.0
        rank = env.get_int("MS_NODE_ID")
        report_gone(place, int(port), rank, reason, patience, has_verdict)
        note_verdict(rank, reason)


def _leave(session: _Session) -> None:
    """Runs at exit. MPI's finalization is collective, so all ranks enter it together."""
    may_finalize = session.client.leave()
    if may_finalize and session.mpi is not None:
        cpu_mpi.finalize(session.mpi)
    if session.pmi is not None and session.serves_beside:
        _answer_farewell(session.pmi)


def _answer_farewell(descriptor: int) -> None:
    """MPI takes its leave of the job server as the process exits, when that thread is gone."""
    ours, theirs = socket.socketpair()
    ours.sendall(b"cmd=finalize_ack rc=0\n")
    os.dup2(theirs.fileno(), descriptor)
    ours.detach()  # stays open for as long as the process


if env.get("MS_ROLE") == "MS_WORKER":
    atexit.register(_report_early_end)
