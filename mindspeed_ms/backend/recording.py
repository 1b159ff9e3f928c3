# SPDX-License-Identifier: Apache-2.0
"""A ``Comm`` that tells how long its calls take, around the one that does them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend.base import Comm, Group, P2POp, Work

_RECORDED = (
    *("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"),
    *("broadcast", "reduce", "isend", "irecv", "batch_isend_irecv", "barrier"),
    *("all_gather_object", "broadcast_object"),
)


@dataclass(frozen=True, slots=True)
class CommCall:
    """One communication of this rank, in seconds of its clock."""

    name: str
    group: str
    ranks: tuple[int, ...]
    """Global ranks of the group."""
    num_bytes: int
    """Of the largest tensor, or of all tensors of a batch."""
    start: float
    """When it was called."""
    blocked: float
    """From when on this rank did nothing else: the call itself, or the wait for its handle."""
    end: float
    sends: tuple[int, ...] = ()
    """Peers, of a transfer between two ranks."""
    receives: tuple[int, ...] = ()
    begun: float = 0.0
    """When the call that only started it came back; 0 for a blocking one."""
    done: float = 0.0
    """When the result was there, which the background knows; 0: not before ``end``."""

    @property
    def visible(self) -> float:
        """Seconds that this rank spent in starting it and in waiting for it."""
        return self.end - self.blocked + max(0.0, self.begun - self.start)

    @property
    def hidden(self) -> float:
        """Seconds from its start to its end that this rank spent on something else."""
        return max(0.0, (self.done or self.end) - self.start - self.visible)


Take = Callable[[CommCall], None]


class _RecordedWork:
    """A handle whose first wait completes a record."""

    def __init__(self, work: Work, complete: Callable[[float, float], None]) -> None:
        self._work, self._complete = work, complete
        self._is_known = False

    def wait(self) -> None:
        """See ``Work``."""
        start = time.perf_counter()
        self._work.wait()
        if not self._is_known:
            self._is_known = True
            self._complete(start, getattr(self._work, "done", 0.0))

    def is_completed(self) -> bool:
        """See ``Work``."""
        return self._work.is_completed()


class RecordingComm:
    """Passes everything on and tells about what takes time.

    Args:
        inner: communicates.
        take: is told every call that is over.
    """

    def __init__(self, inner: Comm, take: Take) -> None:
        self.inner, self._take = inner, take
        for name in _RECORDED:
            setattr(self, name, self._recorded(name, getattr(inner, name)))

    def __getattr__(self, name: str) -> Any:
        """What is not recorded."""
        return getattr(self.inner, name)

    def _recorded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            begun = time.perf_counter() if _is_handle(result) else 0.0
            sends, receives = _peers(name, arguments)
            group = next(one for one in reversed(arguments) if isinstance(one, Group))
            size = _num_bytes(arguments)

            def complete(blocked: float, done: float = 0.0) -> None:
                end = time.perf_counter()
                self._take(
                    CommCall(
                        *(name, group.name, group.ranks, size, start, blocked, end),
                        *(sends, receives, begun, done),
                    )
                )

            if hasattr(result, "wait"):
                return _RecordedWork(result, complete)
            if name == "batch_isend_irecv":
                first, *others = result or [None]
                return [] if first is None else [_RecordedWork(first, complete), *others]
            complete(start)
            return result

        return recorded


def _is_handle(result: object) -> bool:
    """Whether a call has only started what it is to do."""
    first = result[0] if isinstance(result, list) and result else result
    return hasattr(first, "wait")


def _peers(name: str, arguments: Sequence[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if name == "isend":
        return (arguments[1],), ()
    if name == "irecv":
        return (), (arguments[1],)
    if name != "batch_isend_irecv":
        return (), ()
    ops: Sequence[P2POp] = arguments[0]
    return (
        tuple(op.peer for op in ops if op.kind == "isend"),
        tuple(op.peer for op in ops if op.kind == "irecv"),
    )


def _num_bytes(arguments: Sequence[Any]) -> int:
    first = arguments[0]
    if isinstance(first, (list, tuple)) and first and isinstance(first[0], P2POp):
        return sum(op.tensor.nbytes for op in first)
    return max((one.nbytes for one in arguments if isinstance(one, Tensor)), default=0)
