# SPDX-License-Identifier: Apache-2.0
"""Communication between CPU ranks with MPI, on the tensors' own memory.

Nothing is copied on the way in or out, except where the arithmetic needs it: float16 and bfloat16
are reduced in float32 and rounded once, and a reduce-scatter into its own input goes through a
buffer of the output's size. Large blocking collectives of ranks that can read each other's memory
go past MPI (``peer_memory``). Where they cannot, large blocking reductions run piece by piece:
MPI's own buffers and the float32 copies then have the size of a piece, and sums find their terms in
the caches. Transfers move unsigned integers of the element's width; only reductions look at the
type.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import env, peer_memory
from mindspeed_ms.backend.base import Group, P2POp, ReduceOp, SharedMemory, Work
from mindspeed_ms.backend.lane import Lane
from mindspeed_ms.backend.mapped_files import mapped_files
from mindspeed_ms.backend.memory import flat_view
from mindspeed_ms.backend.mpi_numbers import finisher, widen
from mindspeed_ms.backend.mpi_work import CallClock, MpiWork, wait_asleep
from mindspeed_ms.backend.progress import here

_PIECE = 2**20
"""Elements of a reduction that are summed at once; smaller pieces wait for each other too often."""

_HYDRA_SECONDS = 10.0
_HYDRA_ANSWER = 1024

_KEPT_SIGNALS = tuple(sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
_SIGACTION_BYTES = 256
"""No less than C's ``struct sigaction`` has."""

_SWEEP_AT = 64
"""Handles in flight from which on completed ones are looked for."""


def load_mpi() -> ModuleType:
    """Start MPI in this process and return ``mpi4py.MPI``.

    MPI is finalized by ``launch``, which knows whether the other ranks are leaving too.

    Raises:
        RuntimeError: mpi4py or the MPI library is not installed, or MPI could not start.
    """
    with _signals_kept():
        try:
            rc = importlib.import_module("mpi4py").rc
            rc.initialize = rc.finalize = False
            mpi = importlib.import_module("mpi4py.MPI")
        except (ImportError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise RuntimeError(
                f"several CPU ranks need MPI, which cannot be loaded ({reason}); "
                'pip install "mindspeed_ms[cpu]"'
            ) from None
        _initialize(mpi)
    mpi.COMM_WORLD.Set_errhandler(mpi.ERRORS_RETURN)
    return mpi


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Whatever happens inside, signals do afterwards what they did before.

    MPI takes SIGUSR1, by which schedulers of clusters announce the end, for word of a dead rank,
    and SIGHUP. Python's ``signal`` would not see handlers that are not its own.
    """
    library = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in _KEPT_SIGNALS}
    for number, action in kept.items():
        library.sigaction(number, None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            library.sigaction(number, action, None)


def _initialize(mpi: ModuleType) -> None:
    """Start MPI without holding the interpreter lock.

    MPI's start waits for every rank. mpi4py would keep the lock meanwhile, and with it the thread
    that ends this process when another rank has died.
    """
    library = _mapped_library()
    if library is None:
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
        return
    provided = ctypes.c_int()
    status = ctypes.CDLL(library).MPI_Init_thread(
        None, None, mpi.THREAD_MULTIPLE, ctypes.byref(provided)
    )
    if status != 0:
        raise RuntimeError(f"MPI_Init_thread failed with code {status}; see the messages above")


def finalize(mpi: ModuleType) -> None:
    """End MPI without holding the interpreter lock, which the job server's thread needs."""
    library = _mapped_library()
    if library is None:
        mpi.Finalize()
    else:
        ctypes.CDLL(library).MPI_Finalize()


def _mapped_library() -> str | None:
    """Path of the MPI library mpi4py has loaded, where the system tells."""
    is_mpi = re.compile(r"/.*/libmpi(_abi)?\.so[.\d]*").fullmatch
    return next(filter(is_mpi, mapped_files()), None)


def prepare_waiting() -> None:
    """Let a waiting rank give its core away at once to whatever else wants to run.

    MPI reads this when it starts. Eight ranks on two cores answer twenty times faster with it; on
    a machine that others use too, two ranks that wait for each other need half the processor time.
    """
    env.set_default("MPIR_CVAR_POLLS_BEFORE_YIELD", 1)


_FOREIGN = ("PMI_", "PMI2_", "PMIX_", "HYDI_", "HYDRA_", "MPI_LOCAL", "MPIR_CVAR_PMI")
"""Beginnings of variables of other process managers, which an outer ``srun`` may have left."""


def connect_pmi(descriptor: int, rank: int, size: int) -> None:
    """Let MPI, when it starts, speak with the job's server on an open connection."""
    for name in [name for name in env.names() if name.startswith(_FOREIGN)]:
        env.remove(name)
    for name, value in (("PMI_FD", descriptor), ("PMI_RANK", rank), ("PMI_SIZE", size)):
        env.put(name, value)


def forget_pmi() -> None:
    """Children of this rank are no MPI processes."""
    for name in ("PMI_FD", "PMI_RANK", "PMI_SIZE"):
        env.remove(name)


def leave_hydra() -> None:
    """Say good-bye to ``mpiexec`` of MPICH now, and answer MPI's own good-bye from here.

    It kills the others at once, and calls that success, when the connection of a rank ends that has
    not said good-bye. From now on the job's server watches the ranks, and ``mpiexec`` goes by their
    exit statuses.
    """
    descriptor = env.get_int("PMI_FD")
    if descriptor is None or env.get("HYDI_CONTROL_FD") is None:
        return
    with socket.socket(fileno=os.dup(descriptor)) as hydra:
        hydra.settimeout(_HYDRA_SECONDS)
        hydra.sendall(b"cmd=finalize\n")
        hydra.recv(_HYDRA_ANSWER)
    ours, theirs = socket.socketpair()
    # What MPI_Finalize will want to hear; our end must outlive the interpreter's clean-up.
    ours.sendall(b"cmd=barrier_out rc=0\ncmd=finalize_ack rc=0\n")
    ours.detach()
    os.dup2(theirs.fileno(), descriptor)
    theirs.close()


class MpiComm:
    """``Comm`` over MPI; collectives use one communicator per group."""

    def __init__(self, mpi: ModuleType, end_job: Callable[..., NoReturn]) -> None:
        """Wrap a started MPI.

        Args:
            mpi: the module ``load_mpi`` returned.
            end_job: ends every process of the job with a message; ``blames_peer=True`` says that
                it is probably not this rank's fault.
        """
        self._mpi = mpi
        self._end_job = end_job
        self.clock = CallClock((mpi.Exception, OSError), self._fail)
        """Runs while this process is blocked in MPI."""
        world = mpi.COMM_WORLD.Dup()
        self.rank: int = world.rank
        self.world_group = Group(
            tuple(range(world.size)), world.rank, "world", world, "mccl_world_group"
        )
        self._communicators = [world]
        self._groups_made = 0
        self._in_flight: set[MpiWork] = set()
        self._peers = peer_memory.PeerMemory()
        # A thread that waits must not keep the core from the one that computes.
        self._background = peer_memory.PeerMemory(spun_seconds=0.0)
        self._lanes: dict[tuple[int, ...], Lane] = {}
        self._at = mpi.buffer.fromaddress
        """(address, bytes) -> memory that MPI takes in place of an array."""
        # A buffer for MPI is [memory, type]; it derives the count, per rank where it must.
        self._moved_types = {
            1: mpi.UINT8_T,
            2: mpi.UINT16_T,
            4: mpi.UINT32_T,
            8: mpi.UINT64_T,
        }
        # Named outright: NumPy has two names for int64, and MPI refuses to mix them.
        self._number_types = {
            np.dtype(np.float32): mpi.FLOAT,
            np.dtype(np.float64): mpi.DOUBLE,
            np.dtype(np.int64): mpi.INT64_T,
            np.dtype(np.int32): mpi.INT32_T,
            np.dtype(np.int16): mpi.INT16_T,
            np.dtype(np.int8): mpi.INT8_T,
            np.dtype(np.uint16): mpi.UINT16_T,
            np.dtype(np.uint8): mpi.UINT8_T,
        }
        self._operations = {
            ReduceOp.SUM: mpi.SUM,
            ReduceOp.AVG: mpi.SUM,
            ReduceOp.MAX: mpi.MAX,
            ReduceOp.MIN: mpi.MIN,
            ReduceOp.PROD: mpi.PROD,
        }

    def new_group(self, ranks: tuple[int, ...], name: str) -> Group:
        """Create the communicator; only members take part."""
        self._groups_made += 1  # also where this rank is no member: the tag is equal on all ranks
        if self.rank not in ranks:
            return Group(ranks, -1, name)
        world = self.world_group._handle
        members = world.group.Incl(ranks)
        with self.clock:
            communicator = world.Create_group(members, tag=self._groups_made % 32768)
        members.Free()
        self._communicators.append(communicator)
        return Group(ranks, communicator.rank, name, communicator)

    def all_reduce(self, tensor: Tensor, op: ReduceOp, group: Group, async_op: bool) -> Work | None:
        """Allreduce in place."""
        array = flat_view(tensor)
        if array.nbytes >= peer_memory.LEAST_BYTES and (peers := self._readers(group, async_op)):
            return self._past_mpi(
                lambda: peers.all_reduce(array, tensor, op, group), (array,), group, async_op
            )
        if not async_op and array.size > _PIECE:
            for start in range(0, array.size, _PIECE):
                self._all_reduce(array[start : start + _PIECE], tensor, op, group, False)
            return None
        return self._all_reduce(array, tensor, op, group, async_op)

    def _all_reduce(
        self, array: np.ndarray, tensor: Tensor, op: ReduceOp, group: Group, async_op: bool
    ) -> Work | None:
        work = array if tensor.dtype == mstype.float32 else widen(array, tensor)
        is_done = work is array and op is not ReduceOp.AVG
        finish = None if is_done else finisher(array, work, tensor, op, group.size)
        arguments = (
            self._mpi.IN_PLACE,
            [work, self._number_types[work.dtype]],
            self._operations[op],
        )
        return self._run(group, "Allreduce", arguments, (tensor, array, work), finish, async_op)

    def all_gather_into_tensor(
        self, output: Tensor, input: Tensor, group: Group, async_op: bool
    ) -> Work | None:
        """Allgather; in place when the input is this rank's part of the output."""
        target, source = output.data_ptr(), input.data_ptr()
        size, whole = input.nbytes, output.nbytes
        if whole >= peer_memory.LEAST_BYTES and (peers := self._readers(group, async_op)):
            return self._past_mpi(
                lambda: peers.all_gather(target, source, size, group),
                (output, input),
                group,
                async_op,
            )
        kind = self._moved_types[output.itemsize]
        is_own_part = size > 0 and source == target + group.rank * size
        sent = self._mpi.IN_PLACE if is_own_part else [self._at(source, size), kind]
        arguments = (sent, [self._at(target, whole), kind])
        return self._run(group, "Allgather", arguments, (output, input), None, async_op)

    def reduce_scatter_tensor(
        self, output: Tensor, input: Tensor, op: ReduceOp, group: Group, async_op: bool
    ) -> Work | None:
        """Reduce_scatter_block; through a buffer where types or memory require one."""
        result, source = flat_view(output), flat_view(input)
        is_large = source.nbytes >= peer_memory.LEAST_BYTES
        peers = self._readers(group, async_op) if is_large else None
        if peers or (not async_op and source.size > _PIECE):
            own = source[group.rank * result.size : (group.rank + 1) * result.size]
            is_own = own.ctypes.data == result.ctypes.data
            if not is_own and np.may_share_memory(result, source):
                source = source.copy()
            if peers:
                return self._past_mpi(
                    lambda: peers.reduce_scatter(result, source, input, op, group),
                    (result, source),
                    group,
                    async_op,
                )
            blocks, columns = source.reshape(group.size, -1), _PIECE // group.size
            for start in range(0, result.size, columns):
                piece = np.ascontiguousarray(blocks[:, start : start + columns]).reshape(-1)
                part = result[start : start + columns]
                self._reduce_scatter((part, piece), (output, input), op, group, False)
            return None
        return self._reduce_scatter((result, source), (output, input), op, group, async_op)

    def _reduce_scatter(
        self,
        arrays: tuple[np.ndarray, np.ndarray],
        tensors: tuple[Tensor, Tensor],
        op: ReduceOp,
        group: Group,
        async_op: bool,
    ) -> Work | None:
        """Of (result, source) arrays, which are (parts of) the memory of (output, input)."""
        result, (output, input) = arrays[0], tensors
        source = arrays[1] if input.dtype == mstype.float32 else widen(arrays[1], input)
        overlaps = np.may_share_memory(result, source)
        is_direct = source.dtype == result.dtype and not overlaps
        work = result if is_direct else np.empty(result.size, source.dtype)
        is_done = is_direct and op is not ReduceOp.AVG
        finish = None if is_done else finisher(result, work, output, op, group.size)
        keep = (output, input, result, source, work)
        arguments = (
            [source, self._number_types[source.dtype]],
            [work, self._number_types[work.dtype]],
            self._operations[op],
        )
        return self._run(group, "Reduce_scatter_block", arguments, keep, finish, async_op)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        splits: tuple[Sequence[int], Sequence[int]],
        group: Group,
        async_op: bool,
    ) -> Work | None:
        """Alltoallv, counted in elements."""
        received, sent = flat_view(output), flat_view(input)
        counts = _element_counts(output, splits[0]), _element_counts(input, splits[1])
        kind = self._moved_types[sent.itemsize]
        arguments = ([sent, counts[1], kind], [received, counts[0], kind])
        keep = (output, input, received, sent)
        peers = self._readers(group, async_op)
        # Each rank knows its own sizes only, so all are moved alike.
        if peers is None or peer_memory.LEAST_BYTES > peer_memory.MOST_BYTES:
            return self._run(group, "Alltoallv", arguments, keep, None, async_op)
        sizes = [[count * sent.itemsize for count in side] for side in counts]
        target, source = received.ctypes.data, sent.ctypes.data
        return self._past_mpi(
            lambda: peers.all_to_all(target, source, sizes, group), keep, group, async_op
        )

    def broadcast(self, tensor: Tensor, src: int, group: Group, async_op: bool) -> Work | None:
        """Bcast in place."""
        array = flat_view(tensor)
        if array.nbytes >= peer_memory.LEAST_BYTES and (peers := self._readers(group, async_op)):
            root = group.rank_of(src)
            return self._past_mpi(
                lambda: peers.broadcast(array, root, group), (array,), group, async_op
            )
        arguments = ([array, self._moved_types[array.itemsize]], group.rank_of(src))
        return self._run(group, "Bcast", arguments, (tensor, array), None, async_op)

    def reduce(
        self, tensor: Tensor, dst: int, op: ReduceOp, group: Group, async_op: bool
    ) -> Work | None:
        """Reduce, in place on the destination."""
        array, root = flat_view(tensor), group.rank_of(dst)
        work = widen(array, tensor)
        numbers, operation = [work, self._number_types[work.dtype]], self._operations[op]
        if group.rank == root:
            finish = finisher(array, work, tensor, op, group.size)
            arguments: tuple[Any, ...] = (self._mpi.IN_PLACE, numbers, operation, root)
        else:
            finish = None
            arguments = (numbers, None, operation, root)
        return self._run(group, "Reduce", arguments, (tensor, array, work), finish, async_op)

    def isend(self, tensor: Tensor, dst: int, group: Group, tag: int) -> Work:
        """Isend to a global rank."""
        array = flat_view(tensor)
        with self.clock:
            request = group._handle.Isend(
                [array, self._moved_types[array.itemsize]], group.rank_of(dst), tag
            )
        return self._track(MpiWork(request, self.clock, (tensor, array)))

    def irecv(self, tensor: Tensor, src: int, group: Group, tag: int) -> Work:
        """Irecv from a global rank."""
        array = flat_view(tensor)
        with self.clock:
            request = group._handle.Irecv(
                [array, self._moved_types[array.itemsize]], group.rank_of(src), tag
            )
        return self._track(MpiWork(request, self.clock, (tensor, array)))

    def batch_isend_irecv(self, ops: Sequence[P2POp], group: Group) -> list[Work]:
        """One request per transfer, in the order of the list; none of them blocks."""
        return [
            (self.isend if op.kind == "isend" else self.irecv)(op.tensor, op.peer, group, op.tag)
            for op in ops
        ]

    def shared_memory(self, num_bytes: int, group: Group) -> SharedMemory | None:
        """A file in memory that all ranks map, if they are on one host."""
        with self.clock:
            shared = self._peers.shared(num_bytes, group)
        return None if shared is None else SharedMemory(shared, self.clock)

    def barrier(self, group: Group) -> None:
        """Barrier."""
        self._meet(group)

    def _meet(self, group: Group) -> None:
        """Wait until every rank of the group is here, so that the collective only works."""
        with self.clock:
            wait_asleep(group._handle.Ibarrier())

    def all_gather_object(self, obj: object, group: Group) -> list[Any]:
        """Allgather of pickles."""
        self._meet(group)
        with self.clock:
            return group._handle.allgather(obj)

    def broadcast_object(self, obj: object, src: int, group: Group) -> Any:
        """Bcast of a pickle."""
        root = group.rank_of(src)
        self._meet(group)
        with self.clock:
            return group._handle.bcast(obj, root=root)

    def abort(self, message: str) -> NoReturn:
        """End every process of the job."""
        self._end_job(message)

    def _fail(self, error: BaseException) -> None:
        first_line = (str(error).splitlines() or [""])[0]
        self._end_job(f"communication failed in {here.call}: {first_line}", blames_peer=True)

    def destroy(self) -> None:
        """Free the communicators; every rank does."""
        for lane in self._lanes.values():
            lane.end()
        self._lanes.clear()
        for communicator in reversed(self._communicators):
            communicator.Free()
        self._communicators.clear()

    def _run(
        self,
        group: Group,
        name: str,
        arguments: tuple[Any, ...],
        keep: tuple[Any, ...],
        finish: Callable[[], None] | None,
        async_op: bool,
    ) -> Work | None:
        """Call the blocking (``Bcast``) or the non-blocking (``Ibcast``) form of a collective."""
        clock = self.clock
        clock.entered = time.monotonic()  # ``with clock`` would be two calls of every collective
        try:
            if async_op:
                request = getattr(group._handle, "I" + name.lower())(*arguments)
            else:
                wait_asleep(group._handle.Ibarrier())  # so that the collective only works
                getattr(group._handle, name)(*arguments)
        except clock.failures as error:
            clock.on_failure(error)
            raise
        finally:
            clock.entered = 0.0
        if async_op:
            return self._track(MpiWork(request, clock, keep, finish))
        if finish is not None:
            finish()
        return None

    def _readers(self, group: Group, async_op: bool) -> peer_memory.PeerMemory | None:
        """What large collectives of the group go through past MPI; None: they cannot."""
        peers = self._background if async_op else self._peers
        with self.clock:  # the first time, its ranks talk about it
            return peers if peers.serves(group) else None

    def _past_mpi(
        self, call: Callable[[], None], keep: tuple[Any, ...], group: Group, async_op: bool
    ) -> Work | None:
        """Make a call of ``PeerMemory`` now, or in the background."""
        if not async_op:
            with self.clock:
                call()
            return None
        lane = self._lanes.get(group.ranks)
        if lane is None:
            lane = self._lanes[group.ranks] = Lane(f"collectives of {group.name}", self.clock)
        return lane.begin(call, keep)

    def _track(self, work: MpiWork) -> MpiWork:
        """Hold a handle until it is complete, even if the caller drops it."""
        if len(self._in_flight) >= _SWEEP_AT:
            held = self._in_flight
            self._in_flight = {w for w in held if not (w._is_done or w.is_completed())}
        self._in_flight.add(work)
        return work


def _element_counts(tensor: Tensor, rows: Sequence[int]) -> list[int]:
    per_row = int(np.prod(tensor.shape[1:], dtype=np.int64))
    return [count * per_row for count in rows]
