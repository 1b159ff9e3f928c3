# SPDX-License-Identifier: Apache-2.0
"""ZeRO-3: each rank keeps its shard of the weights; whole ones are gathered just before their use.

Two whole weights exist at a time: the one in use, and the one that is expected next and travels
meanwhile. What comes next is learnt: the weight that followed the same two uses the last time
(two, because forward and backward walk the layers in opposite directions).

Source: Rajbhandari et al., 2020 (ZeRO), stage 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from mindspore import Parameter, Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Work
from mindspeed_ms.core.distributed.bucket import Reduction
from mindspeed_ms.plan.param_layout import BufferLayout

NUM_WHOLE = 2
"""Weights that exist as a whole at a time."""


class ShardedParams:
    """Weights of which this rank keeps a shard each; every bucket holds one weight.

    A weight that is not gathered shows zeros: whoever uses one without ``make_ready`` must see it.
    """

    def __init__(
        self, layout: BufferLayout, parameters: Mapping[str, Parameter], reduction: Reduction
    ) -> None:
        self._group = reduction.group
        dtype = next(iter(parameters.values())).dtype
        self._spans = layout.buckets
        largest = max(span.size for span in layout.buckets)
        self._slots = [memory.zeros((largest,), dtype) for _ in range(NUM_WHOLE)]
        self._blank = memory.zeros((largest,), dtype)
        self.flat = memory.zeros((layout.size // reduction.shards,), dtype)
        self._shards, self._params = [], []
        position = 0
        for index, span in enumerate(layout.buckets):
            (slot,) = span.slots
            param = parameters[slot.name]
            start, end = span.shard(reduction.shard_rank, reduction.shards)
            shard = memory.view_of(self.flat, position, (end - start,))
            ops.copy_cast_(memory.view_of(self._slots[0], 0, slot.shape), param)
            ops.copy_cast_(
                shard, memory.view_of(self._slots[0], start - span.start, (end - start,))
            )
            memory.zero_(self._slots[0])
            self._shards.append(shard)
            self._params.append(param)
            param.before_use = partial(self.ensure, index)
            position += end - start
            self._hide(index)
        self._in_slot: list[int | None] = [None] * NUM_WHOLE
        self._works: list[Work | None] = [None] * NUM_WHOLE
        self._last: tuple[int | None, int | None] = (None, None)
        self._followers: dict[tuple[int | None, int | None], int] = {}

    def shard(self, index: int) -> Tensor:
        """The part of weight ``index`` that this rank updates."""
        return self._shards[index]

    def ensure(self, index: int) -> None:
        """Return when weight ``index`` is whole; the next one is on its way then."""
        place = self._place_of(index)
        self._wait(place)
        if index == self._last[1]:
            return
        self._followers[self._last] = index
        self._last = (self._last[1], index)
        follower = self._followers.get(self._last)
        if follower is not None and follower not in self._in_slot:
            self._gather(follower, 1 - place)

    def publish(self) -> None:
        """Forget gathered weights: their shards have changed."""
        for place in range(NUM_WHOLE):
            self._evict(place)

    def finish(self) -> None:
        """Weights are gathered at their use; there is nothing to complete."""

    def _place_of(self, index: int) -> int:
        if index not in self._in_slot:
            newest = self._last[1]
            in_use = self._in_slot.index(newest) if newest in self._in_slot else 1
            self._gather(index, 1 - in_use)
        return self._in_slot.index(index)

    def _gather(self, index: int, place: int) -> None:
        self._evict(place)
        span = self._spans[index]
        whole = memory.view_of(self._slots[place], 0, (span.size,))
        self._works[place] = comm.all_gather_into_tensor(
            whole, self._shards[index], self._group, async_op=True
        )
        self._in_slot[place] = index
        param = self._params[index]
        memory.set_data(param, memory.view_of(self._slots[place], 0, param.shape))

    def _evict(self, place: int) -> None:
        self._wait(place)
        index = self._in_slot[place]
        if index is not None:
            self._hide(index)
            self._in_slot[place] = None

    def _wait(self, place: int) -> None:
        work = self._works[place]
        if work is not None:
            work.wait()
            self._works[place] = None

    def _hide(self, index: int) -> None:
        param = self._params[index]
        memory.set_data(param, memory.view_of(self._blank, 0, param.shape))

    @property
    def num_bytes(self) -> int:
        """Memory held: the shards, the whole weights, and what hidden weights show."""
        tensors = (self.flat, self._blank, *self._slots)
        return sum(memory.num_bytes(tensor) for tensor in tensors)
