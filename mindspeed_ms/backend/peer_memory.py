# SPDX-License-Identifier: Apache-2.0
"""Large collectives between ranks of one host, which read each other's memory.

MPI moves a message through buffers that both sides map: every byte is copied in and out, and a
reduction passes it several times. Linux lets processes of one user read one another
(``process_vm_readv``), so here every byte of a peer is copied once, straight to where it is needed;
a reduction copies a piece that stays in the caches. MPI only tells the ranks the addresses, and
when everybody has arrived or has finished.

The order of the terms of a sum is that of the ranks, whatever the size of the tensor.
"""

from __future__ import annotations

import ctypes
import os
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import env
from mindspeed_ms.backend.base import Group, ReduceOp
from mindspeed_ms.backend.mpi_numbers import finisher, widen
from mindspeed_ms.backend.mpi_work import wait_asleep

LEAST_BYTES = 2**18
"""From here on, equal on all ranks, callers ask; below, MPI's latency is lower."""

_PIECE_BYTES = 2**18
"""Of a term of a sum; two pieces stay in a core's second cache."""

_FUNCTIONS: dict[ReduceOp, np.ufunc] = {
    ReduceOp.SUM: np.add,
    ReduceOp.AVG: np.add,
    ReduceOp.MAX: np.maximum,
    ReduceOp.MIN: np.minimum,
    ReduceOp.PROD: np.multiply,
}

_Range = ctypes.c_size_t * 2
"""An ``iovec``: address and number of bytes."""


class PeerMemory:
    """What a rank reads of the others, group by group."""

    def __init__(self) -> None:
        self._pids: dict[tuple[int, ...], tuple[int, ...] | None] = {}
        library = ctypes.CDLL(None, use_errno=True)
        read = getattr(library, "process_vm_readv", None)  # Linux only
        self._call = read if env.get("MINDSPEED_MS_PEER_MEMORY") != "0" else None
        if self._call is not None:
            size, pointer = ctypes.c_ulong, ctypes.POINTER(_Range)
            self._call.argtypes = (ctypes.c_int, pointer, size, pointer, size, size)
            self._call.restype = ctypes.c_ssize_t

    # ---- which collectives are served ------------------------------------------------------------

    def serves(self, group: Group) -> bool:
        """Whether all ranks of a group can read each other.

        The first time a group asks, they try to read a random number: they may be on several
        hosts, in containers that hide processes, or forbidden to look.
        """
        if group.ranks not in self._pids:
            self._pids[group.ranks] = self._readable(group)
        return self._pids[group.ranks] is not None

    def _readable(self, group: Group) -> tuple[int, ...] | None:
        """Process numbers of the ranks; None unless every rank can read every other."""
        number = np.array([secrets.randbits(62)], np.int64)
        told = self._tell(group, [os.getpid(), number.ctypes.data, number[0]])
        is_readable = self._call is not None and all(self._holds(*place) for place in told.tolist())
        agreed = self._tell(group, [int(is_readable)])  # also keeps ``number`` until all have read
        return tuple(told[:, 0].tolist()) if agreed.all() else None

    def _holds(self, pid: int, address: int, expected: int) -> bool:
        """Whether a process has a number at an address, as far as this one may see."""
        seen = np.empty(1, np.int64)
        try:
            self._read(pid, seen.ctypes.data, address, seen.nbytes)
        except OSError:
            return False
        return bool(seen[0] == expected)

    # ---- collectives -----------------------------------------------------------------------------

    def all_reduce(self, array: np.ndarray, tensor: Tensor, op: ReduceOp, group: Group) -> None:
        """Reduce an array of equal size on every rank in place.

        Args:
            array: the flat elements of the tensor.
            tensor: says the type.
            op: the reduction.
            group: ranks that take part.
        """
        width = array.itemsize
        bounds = [array.size * k // group.size for k in range(group.size + 1)]
        begin, end = bounds[group.rank], bounds[group.rank + 1]
        addresses = self._tell(group, [array.ctypes.data])[:, 0].tolist()
        terms = [address + begin * width for address in addresses]
        self._sum(array[begin:end], array[begin:end], terms, (tensor, op, group))
        self._meet(group)
        for k, pid in self._peers(group):
            first, count = bounds[k] * width, (bounds[k + 1] - bounds[k]) * width
            self._read(pid, array.ctypes.data + first, addresses[k] + first, count)
        self._meet(group)

    def reduce_scatter(
        self, result: np.ndarray, source: np.ndarray, tensor: Tensor, op: ReduceOp, group: Group
    ) -> None:
        """This rank's block of the reduced ``source``; the result may be that block of it."""
        first = group.rank * result.size
        addresses = self._tell(group, [source.ctypes.data])[:, 0].tolist()
        terms = [address + first * source.itemsize for address in addresses]
        own = source[first : first + result.size]
        self._sum(result, own, terms, (tensor, op, group))
        self._meet(group)

    def all_gather(self, target: int, source: int, size: int, group: Group) -> None:
        """Collect ``size`` bytes of every rank at the address ``target``."""
        addresses = self._tell(group, [source])[:, 0].tolist()
        own = target + group.rank * size
        if own != source:
            ctypes.memmove(own, source, size)
        for k, pid in self._peers(group):
            self._read(pid, target + k * size, addresses[k], size)
        self._meet(group)

    def all_to_all(
        self, target: int, source: int, sizes: Sequence[Sequence[int]], group: Group
    ) -> bool:
        """Bring every rank its bytes; ``sizes`` are those to receive and to send, rank by rank.

        Returns:
            False if the ranks found together that there is too little to move; nothing was done.
        """
        received, sent = sizes
        starts = np.cumsum([source, *sent]).tolist()
        told = self._tell(group, [*starts[:-1], sum(sent)])
        if told[:, -1].max() < LEAST_BYTES or not self.serves(group):
            return False
        place = target
        for k, size in enumerate(received):
            if k == group.rank:
                ctypes.memmove(place, starts[k], size)
            elif size:
                pid = self._pid(group, k)
                self._read(pid, place, int(told[k, group.rank]), size)
            place += size
        self._meet(group)
        return True

    def broadcast(self, array: np.ndarray, root: int, group: Group) -> None:
        """Copy the elements of the rank ``root`` of the group to all others."""
        address = int(self._tell(group, [array.ctypes.data])[root, 0])
        if group.rank != root:
            self._read(self._pid(group, root), array.ctypes.data, address, array.nbytes)
        self._meet(group)

    # ---- parts of them ---------------------------------------------------------------------------

    def _sum(
        self,
        result: np.ndarray,
        own: np.ndarray,
        terms: Sequence[int],
        how: tuple[Tensor, ReduceOp, Group],
    ) -> None:
        """Reduce arrays at the addresses ``terms``, of which ``own`` is this rank's, in pieces."""
        tensor, op, group = how
        length = _PIECE_BYTES // result.itemsize
        first, later = np.empty(length, own.dtype), np.empty(length, own.dtype)
        work = np.empty(length, widen(first[:0], tensor).dtype)
        is_direct = work.dtype == result.dtype and op is not ReduceOp.AVG
        for start in range(0, result.size, length):
            part = result[start : start + length]
            total = part if is_direct else work[: part.size]
            reduced = None
            for k, address in enumerate(terms):
                if k == group.rank:
                    term = own[start : start + length]
                else:
                    term = (first if reduced is None else later)[: part.size]
                    at = address + start * own.itemsize
                    self._read(self._pid(group, k), term.ctypes.data, at, term.nbytes)
                term = widen(term, tensor)
                if reduced is None:
                    reduced = term
                else:  # only the last term may go to the result, which can be the own term's place
                    out = total if k == group.size - 1 else work[: part.size]
                    reduced = _FUNCTIONS[op](reduced, term, out=out)
            finish = finisher(part, total, tensor, op, group.size)
            if finish is not None:
                finish()

    def _peers(self, group: Group) -> list[tuple[int, int]]:
        """(rank in the group, process number) of the others, this rank's successor first.

        So that the ranks do not all read the same one at once.
        """
        turns = ((group.rank + step) % group.size for step in range(1, group.size))
        return [(k, self._pid(group, k)) for k in turns]

    def _pid(self, group: Group, rank: int) -> int:
        pids = self._pids[group.ranks]
        assert pids is not None, "serves() comes first"
        return pids[rank]

    def _read(self, pid: int, target: int, source: int, size: int) -> None:
        """Copy memory of another process.

        Raises:
            OSError: it has ended, or its memory is not readable.
        """
        call: Any = self._call
        while size > 0:
            here, there = _Range(target, size), _Range(source, size)
            count = call(pid, here, 1, there, 1, 0)
            if count <= 0:
                code = ctypes.get_errno()
                raise OSError(code, f"cannot read the memory of process {pid}: {os.strerror(code)}")
            target, source, size = target + count, source + count, size - count

    @staticmethod
    def _tell(group: Group, numbers: Sequence[int]) -> np.ndarray:
        """The numbers of every rank, [ranks, numbers]; comes back when all ranks are here."""
        told = np.empty((group.size, len(numbers)), np.int64)
        wait_asleep(group._handle.Iallgather(np.array(numbers, np.int64), told))
        return told

    @staticmethod
    def _meet(group: Group) -> None:
        """Nobody goes on, and changes what others read, before all are here."""
        wait_asleep(group._handle.Ibarrier())
