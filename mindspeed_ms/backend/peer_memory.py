# SPDX-License-Identifier: Apache-2.0
"""Large collectives between ranks of one host, which read each other's memory.

MPI moves a message through buffers that both sides map: every byte is copied in and out, and a
reduction passes it several times. Linux lets processes of one user read one another
(``process_vm_readv``), so a gather or an exchange copies every byte of a peer once, straight to
where it is needed. The system takes three times as long for that as a copy inside a process does,
so terms of a reduction go through memory that the ranks share, in pieces that stay in the caches:
while a rank writes a piece it sums the one before, and takes the sums of the one before that. The
ranks tell each other addresses, and that they have arrived or finished, in shared memory too
(``meeting``); MPI only brings them together.

The order of the terms of a sum is that of the ranks, whatever the size of the tensor.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import env
from mindspeed_ms.backend.base import Group, ReduceOp
from mindspeed_ms.backend.meeting import SPUN_SECONDS, Meeting
from mindspeed_ms.backend.mpi_numbers import finisher, widen
from mindspeed_ms.backend.mpi_work import wait_asleep

LEAST_BYTES = 2**18
"""From here on, equal on all ranks, callers ask; below, MPI's latency is lower."""

MOST_BYTES = 2**48
"""More than there are: with ``LEAST_BYTES`` above it, everything goes through MPI."""

_PIECE_BYTES = 2**18
"""Of a term of a sum; two pieces stay in a core's second cache."""

_WINDOW_BYTES = 2**21
"""That a rank shares at a time: little enough for what it writes to be in a cache still when others
read it, enough for few meetings."""

_FUNCTIONS: dict[ReduceOp, np.ufunc] = {
    ReduceOp.SUM: np.add,
    ReduceOp.AVG: np.add,
    ReduceOp.MAX: np.maximum,
    ReduceOp.MIN: np.minimum,
    ReduceOp.PROD: np.multiply,
}

_ALIGNED = 64
"""Blocks of the shared memory begin at multiples of this, in bytes."""

_Range = ctypes.c_size_t * 2
"""An ``iovec``: address and number of bytes."""


class _Window:
    """Memory that the ranks of a group share: what they send each other, and the sums.

    Every rank has two halves, each of a block per destination and one of sums.
    """

    def __init__(self, shared: np.ndarray, ranks: int) -> None:
        self.block_bytes = self._block_bytes(ranks)
        self.first_half = 0
        self._halves = shared[: self.num_bytes(ranks)].reshape(ranks, 2, ranks + 1, -1)

    @staticmethod
    def _block_bytes(ranks: int) -> int:
        return _WINDOW_BYTES // ranks // _ALIGNED * _ALIGNED

    @classmethod
    def num_bytes(cls, ranks: int) -> int:
        """Size for so many ranks."""
        return cls._block_bytes(ranks) * ranks * 2 * (ranks + 1)

    def term(self, turn: int, sender: int, to: int, like: np.ndarray) -> np.ndarray:
        """Where a rank puts what another adds up, of the size and type of ``like``."""
        return self._half(turn, sender)[to, : like.nbytes].view(like.dtype)

    def total(self, turn: int, rank: int, like: np.ndarray) -> np.ndarray:
        """Where a rank puts sums that all take."""
        return self._half(turn, rank)[-1, : like.nbytes].view(like.dtype)

    def _half(self, turn: int, rank: int) -> np.ndarray:
        return self._halves[rank, (self.first_half + turn) & 1]


@dataclass(frozen=True, slots=True)
class _Site:
    """Where the ranks of a group work together."""

    pids: tuple[int, ...]
    """Process numbers of the ranks."""
    meeting: Meeting
    window: _Window


class PeerMemory:
    """What a rank reads of the others, group by group.

    Args:
        spun_seconds: how long a rank looks for the others before it sleeps.
    """

    def __init__(self, spun_seconds: float = SPUN_SECONDS) -> None:
        self._sites: dict[tuple[int, ...], _Site | None] = {}
        self._shared: dict[tuple[tuple[int, ...], int], np.ndarray | None] = {}
        self._spun_seconds = spun_seconds
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
        if group.ranks not in self._sites:
            self._sites[group.ranks] = self._opened(group)
        return self._sites[group.ranks] is not None

    def _opened(self, group: Group) -> _Site | None:
        """Memory that the ranks share; None unless every rank can read every other."""
        ranks, head = group.size, _head_bytes(group.size)
        number = np.array([secrets.randbits(62)], np.int64)
        file = self._new_file(ranks) if group.rank == 0 else -1
        told = _told(group, [os.getpid(), number.ctypes.data, number[0], file])
        site = None
        if self._call is not None and all(
            self._holds(pid, address, seen) for pid, address, seen, _ in told.tolist()
        ):
            path = f"/proc/{told[0, 0]}/fd/{told[0, 3]}"
            shared = _mapped(path, head + _Window.num_bytes(ranks))
            if shared is not None:
                pids = tuple(told[:, 0].tolist())
                meeting = Meeting(shared[:head], ranks, group.rank, self._spun_seconds)
                site = _Site(pids, meeting, _Window(shared[head:], ranks))
        # Also keeps the number and the file until all have read them.
        agreed = _told(group, [int(site is not None)])
        if file >= 0:
            os.close(file)
        return site if agreed.all() else None

    def _new_file(self, ranks: int) -> int:
        """Descriptor of a file for a site, -1 where the system refuses."""
        if self._call is None or not Meeting.is_possible():
            return -1
        head = _head_bytes(ranks)
        try:
            file = _file_in_memory(head + _Window.num_bytes(ranks))
            shared = _mapped(f"/proc/self/fd/{file}", head)
            if shared is None:
                return -1
            Meeting(shared, ranks, 0).prepare()
        except OSError:  # as where a sandbox forbids it: the ranks will find no file
            return -1
        return file

    def _holds(self, pid: int, address: int, expected: int) -> bool:
        """Whether a process has a number at an address, as far as this one may see."""
        seen = np.empty(1, np.int64)
        try:
            self._read(pid, seen.ctypes.data, address, seen.nbytes)
        except OSError:
            return False
        return bool(seen[0] == expected)

    def shared(self, num_bytes: int, group: Group) -> np.ndarray | None:
        """Zeros that all ranks of a group map; None on all of them if they cannot."""
        if not self.serves(group):
            return None
        key = (group.ranks, num_bytes)
        if key not in self._shared:
            file = _file_in_memory(num_bytes) if group.rank == 0 else -1
            told = _told(group, [os.getpid(), file])
            shared = _mapped(f"/proc/{told[0, 0]}/fd/{told[0, 1]}", num_bytes)
            agreed = _told(group, [int(shared is not None)])  # all have opened the file
            if file >= 0:
                os.close(file)
            self._shared[key] = shared if agreed.all() else None
        return self._shared[key]

    # ---- collectives -----------------------------------------------------------------------------

    def all_reduce(self, array: np.ndarray, tensor: Tensor, op: ReduceOp, group: Group) -> None:
        """Reduce an array of equal size on every rank in place.

        Args:
            array: the flat elements of the tensor.
            tensor: says the type.
            op: the reduction.
            group: ranks that take part.
        """
        window, size, rank = self._site(group).window, group.size, group.rank
        step = window.block_bytes // array.itemsize * size

        def blocks(turn: int) -> list[np.ndarray]:
            piece = array[turn * step : (turn + 1) * step]
            ends = [piece.size * k // size for k in range(size + 1)]
            return [piece[begin:end] for begin, end in pairwise(ends)]

        def send(turn: int) -> None:
            for k, block in enumerate(blocks(turn)):
                if k != rank:
                    window.term(turn, rank, k, block)[...] = block

        def add(turn: int) -> None:
            own = blocks(turn)[rank]
            terms = [own if k == rank else window.term(turn, k, rank, own) for k in range(size)]
            _reduce(own, terms, (tensor, op), window.total(turn, rank, own))

        def take(turn: int) -> None:
            for k, block in enumerate(blocks(turn)):
                if k != rank:
                    block[...] = window.total(turn, k, block)

        self._in_turns(-(-array.size // step), (send, add, take), group)

    def reduce_scatter(
        self, result: np.ndarray, source: np.ndarray, tensor: Tensor, op: ReduceOp, group: Group
    ) -> None:
        """This rank's block of the reduced ``source``; the result may be that block of it."""
        window, size, rank = self._site(group).window, group.size, group.rank
        step = window.block_bytes // source.itemsize

        def block(k: int, turn: int) -> np.ndarray:
            end = min((turn + 1) * step, result.size)
            return source[k * result.size + turn * step : k * result.size + end]

        def send(turn: int) -> None:
            for k in range(size):
                if k != rank:
                    term = block(k, turn)
                    window.term(turn, rank, k, term)[...] = term

        def add(turn: int) -> None:
            own = block(rank, turn)
            terms = [own if k == rank else window.term(turn, k, rank, own) for k in range(size)]
            _reduce(result[turn * step : (turn + 1) * step], terms, (tensor, op))

        self._in_turns(-(-result.size // step), (send, add), group)

    def all_gather(self, target: int, source: int, size: int, group: Group) -> None:
        """Collect ``size`` bytes of every rank at the address ``target``."""
        addresses = self._site(group).meeting.tell([source])[:, 0].tolist()
        own = target + group.rank * size
        if own != source:
            ctypes.memmove(own, source, size)
        for k, pid in self._peers(group):
            self._read(pid, target + k * size, addresses[k], size)
        self._site(group).meeting.meet()

    def all_to_all(
        self, target: int, source: int, sizes: Sequence[Sequence[int]], group: Group
    ) -> None:
        """Bring every rank its bytes; ``sizes`` are those to receive and to send, rank by rank."""
        received, sent = sizes
        starts = np.cumsum([source, *sent]).tolist()
        site, place = self._site(group), target
        told = site.meeting.tell(starts[:-1])
        for k, size in enumerate(received):
            if k == group.rank:
                ctypes.memmove(place, starts[k], size)
            elif size:
                self._read(site.pids[k], place, int(told[k, group.rank]), size)
            place += size
        site.meeting.meet()

    def broadcast(self, array: np.ndarray, root: int, group: Group) -> None:
        """Copy the elements of the rank ``root`` of the group to all others."""
        site = self._site(group)
        address = int(site.meeting.tell([array.ctypes.data])[root, 0])
        if group.rank != root:
            self._read(site.pids[root], array.ctypes.data, address, array.nbytes)
        site.meeting.meet()

    # ---- parts of them ---------------------------------------------------------------------------

    def _in_turns(self, count: int, steps: Sequence[Callable[[int], None]], group: Group) -> None:
        """Take the steps of ``count`` turns, each step of a turn after a meeting of all ranks.

        A turn uses one of two halves of the window. The halves alternate from call to call, so that
        nobody writes to the half that others still read in the last step of the call before.
        """
        site = self._site(group)
        for moment in range(count + len(steps) - 1):
            if moment:
                site.meeting.meet()
            for delay in reversed(range(len(steps))):
                if 0 <= moment - delay < count:
                    steps[delay](moment - delay)
        site.window.first_half ^= count & 1

    def _peers(self, group: Group) -> list[tuple[int, int]]:
        """(rank in the group, process number) of the others, this rank's successor first.

        So that the ranks do not all read the same one at once.
        """
        turns = ((group.rank + step) % group.size for step in range(1, group.size))
        return [(k, self._site(group).pids[k]) for k in turns]

    def _site(self, group: Group) -> _Site:
        site = self._sites[group.ranks]
        assert site is not None, "serves() comes first"
        return site

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


def _file_in_memory(size: int) -> int:
    """Descriptor of a file of zeros, which is gone with the last process that maps it.

    Raises:
        OSError: the system refuses.
    """
    file = os.memfd_create("mindspeed_ms", os.MFD_CLOEXEC)
    os.ftruncate(file, size)
    return file


def _head_bytes(ranks: int) -> int:
    """Of the shared memory, for the meeting; the window begins after it."""
    return -(-Meeting.num_bytes(ranks) // _ALIGNED) * _ALIGNED


def _told(group: Group, numbers: Sequence[int]) -> np.ndarray:
    """The numbers of every rank through MPI, [ranks, numbers]."""
    told = np.empty((group.size, len(numbers)), np.int64)
    wait_asleep(group._handle.Iallgather(np.array(numbers, np.int64), told))
    return told


def _mapped(path: str, size: int) -> np.ndarray | None:
    """The bytes of a file that processes share; None if it cannot be opened."""
    try:
        with open(path, "r+b", buffering=0) as file:
            return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
    except OSError:
        return None


def _reduce(
    result: np.ndarray,
    terms: Sequence[np.ndarray],
    how: tuple[Tensor, ReduceOp],
    copy: np.ndarray | None = None,
) -> None:
    """Reduce the terms in their order, in pieces; the result may be one of them."""
    tensor, op = how
    length = _PIECE_BYTES // result.itemsize
    for start in range(0, result.size, length):
        part = result[start : start + length]
        wide = [widen(term[start : start + length], tensor) for term in terms]
        is_direct = wide[0].dtype == result.dtype and op is not ReduceOp.AVG
        # Only the last sum may go to the result, which can be the place of a later term.
        work = np.empty(part.size, wide[0].dtype) if len(terms) > 2 or not is_direct else part
        reduced = wide[0]
        for term in wide[1:]:
            is_last = term is wide[-1]
            reduced = _FUNCTIONS[op](reduced, term, out=part if is_direct and is_last else work)
        finish = finisher(part, part if is_direct else work, tensor, op, len(terms))
        if finish is not None:
            finish()
        if copy is not None:
            copy[start : start + length] = part
