# SPDX-License-Identifier: Apache-2.0
"""Parameters in flat memory, so that one call updates or gathers many of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from mindspore import Parameter, Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Work
from mindspeed_ms.core.distributed.bucket import Reduction
from mindspeed_ms.plan.param_layout import BufferLayout


class ParamStore(Protocol):
    """Memory of some parameters, of which this rank may own a shard of each bucket."""

    flat: Tensor
    """What lasts: all parameters, or this rank's shards."""

    def shard(self, index: int) -> Tensor:
        """The part of bucket ``index`` that this rank updates, one-dimensional."""

    def publish(self) -> None:
        """Let the other ranks have the updated shards, now or when they are needed."""

    def finish(self) -> None:
        """Complete what ``publish`` has left."""

    @property
    def num_bytes(self) -> int:
        """Memory held."""


class ParamBuffer:
    """All parameters in one flat buffer, at the places of their gradients.

    With ``overlap`` an updated bucket is gathered when a parameter in it is about to be used: the
    use waits for its own bucket and starts the gather of the next one. Buckets lie in the order of
    the backward pass, so the next one in forward is the one before.
    """

    def __init__(
        self,
        layout: BufferLayout,
        parameters: Mapping[str, Parameter],
        reduction: Reduction,
        overlap: bool,
    ) -> None:
        self._group = reduction.group
        self._is_sharded = reduction.is_sharded and reduction.group.size > 1
        self._overlap = overlap and self._is_sharded
        dtype = next(iter(parameters.values())).dtype
        self.flat = memory.zeros((layout.size,), dtype)
        self._wholes, self._shards = [], []
        for index, span in enumerate(layout.buckets):
            for slot in span.slots:
                param = parameters[slot.name]
                move_into(param, memory.view_of(self.flat, slot.start, slot.shape))
                if self._overlap:
                    param.before_use = partial(self.ensure, index)
            start, end = span.shard(reduction.shard_rank, reduction.shards)
            self._wholes.append(memory.view_of(self.flat, span.start, (span.size,)))
            self._shards.append(memory.view_of(self.flat, start, (end - start,)))
        self._stale = [False] * len(layout.buckets)
        self._works: list[Work | None] = [None] * len(layout.buckets)

    def shard(self, index: int) -> Tensor:
        """The part of bucket ``index`` that this rank updates."""
        return self._shards[index]

    def publish(self) -> None:
        """Gather all buckets, or with ``overlap`` start with the first one that is used."""
        if not self._is_sharded:
            return
        self._stale = [True] * len(self._stale)
        if self._overlap:
            self._start(len(self._stale) - 1)
        else:
            self.finish()

    def ensure(self, index: int) -> None:
        """Return when bucket ``index`` holds the updated parameters of all ranks."""
        if not self._stale[index]:
            return
        self._start(index).wait()
        self._works[index] = None
        self._stale[index] = False
        if index > 0 and self._stale[index - 1]:
            self._start(index - 1)

    def finish(self) -> None:
        """Gather every bucket that still is not up to date."""
        for index in reversed(range(len(self._stale))):
            self.ensure(index)

    def _start(self, index: int) -> Work:
        work = self._works[index]
        if work is None:
            work = comm.all_gather_into_tensor(
                self._wholes[index], self._shards[index], self._group, async_op=True
            )
            assert work is not None, "an asynchronous collective returns a handle"
            self._works[index] = work
        return work

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return memory.num_bytes(self.flat)


def move_into(parameter: Parameter, storage: Tensor) -> None:
    """Copy a parameter into ``storage`` and make that its memory."""
    ops.copy_cast_(storage, parameter)
    memory.set_data(parameter, storage)
