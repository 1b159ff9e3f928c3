# SPDX-License-Identifier: Apache-2.0
"""ZeRO-2: each rank keeps its shard of the gradients; whole ones exist only while they are made.

A bucket borrows scratch memory when its first gradient arrives. Once all have arrived they are
reduce-scattered, added to the shard, and the memory goes to the next bucket. That happens in every
micro-batch, so communication grows with their number. A gradient that arrives again afterwards (a
tied table has two contributions) borrows again: sums do not mind being cut.

Source: Rajbhandari et al., 2020 (ZeRO), stage 2.
"""

from __future__ import annotations

from collections.abc import Mapping

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Work
from mindspeed_ms.core.distributed.bucket import Reduction, add_, first_not_finite, scale_
from mindspeed_ms.core.distributed.grad_buffer import GradPlan, attach_sink, detach_sink
from mindspeed_ms.plan.param_layout import BucketSpan, BufferLayout


class ScratchPool:
    """Flat tensors of one size, lent and returned."""

    def __init__(self, size: int, dtype: mstype.Type) -> None:
        self._size, self._dtype = size, dtype
        self._free: list[Tensor] = []
        self.num_tensors = 0

    def borrow(self) -> Tensor:
        """A tensor of zeros; a new one when all are lent."""
        if self._free:
            tensor = self._free.pop()
            memory.zero_(tensor)
            return tensor
        self.num_tensors += 1
        return memory.zeros((self._size,), self._dtype)

    def give_back(self, tensor: Tensor) -> None:
        """Return a tensor."""
        self._free.append(tensor)

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors, lent or not."""
        return self.num_tensors * self._size * memory.numpy_dtype(self._dtype).itemsize


class _ShardedBucket:
    """A bucket whose shard stays and whose whole comes and goes."""

    def __init__(self, span: BucketSpan, plan: GradPlan, pool: ScratchPool, shard: Tensor) -> None:
        self.span, self.shard = span, shard
        self._plan, self._pool = plan, pool
        self._scratch: Tensor | None = None
        self._work: Work | None = None
        self.is_reducing = False
        self._arrived = [False] * len(span.slots)

    def main_grad(self, index: int) -> Tensor:
        """Where the gradient of a slot is accumulated just now."""
        if self.is_reducing:
            self.complete()
        if self._scratch is None:
            self._scratch = self._pool.borrow()
        slot = self.span.slots[index]
        return memory.view_of(self._scratch, slot.start - self.span.start, slot.shape)

    def mark_ready(self, index: int) -> bool:
        """Note an accumulation; True when the bucket is complete."""
        self._arrived[index] = True
        return all(self._arrived)

    @property
    def is_dirty(self) -> bool:
        """True when gradients have arrived that no reduction took along."""
        return self._scratch is not None and not self.is_reducing

    def start(self, async_op: bool) -> None:
        """Start to reduce what has arrived."""
        reduction = self._plan.reduction
        whole = memory.view_of(self._scratch, 0, (self.span.size,))
        if reduction.check_finite and reduction.mixes_ranks:
            name = first_not_finite(self.span, whole)
            if name is not None:
                self._plan.report(name)
        scale_(whole, reduction.scale)
        self.is_reducing = True
        if reduction.group.size > 1:
            self._work = comm.reduce_scatter_tensor(
                self._part(), whole, reduction.op, reduction.group, async_op
            )

    def complete(self) -> None:
        """Wait for the reduction, add the result to the shard and return the memory."""
        if self._work is not None:
            self._work.wait()
        add_(self.shard, self._part())
        self._pool.give_back(self._scratch)
        self._scratch = self._work = None
        self.is_reducing = False
        self._arrived = [False] * len(self.span.slots)

    def _part(self) -> Tensor:
        start, end = self.span.shard(self._plan.reduction.shard_rank, self._plan.reduction.shards)
        return memory.view_of(self._scratch, start - self.span.start, (end - start,))


class _ScratchSink:
    """A ``GradSink`` whose memory is found at the moment of use."""

    def __init__(self, buffer: ShardedGradBuffer, bucket: _ShardedBucket, index: int) -> None:
        self._buffer, self._bucket, self._index = buffer, bucket, index

    @property
    def main_grad(self) -> Tensor:
        """Where to add the gradient."""
        return self._bucket.main_grad(self._index)

    def mark_ready(self) -> None:
        """Note an accumulation."""
        if self._bucket.mark_ready(self._index):
            self._buffer.reduce(self._bucket)


class ShardedGradBuffer:
    """Shards of all gradients, and scratch memory for the buckets that are being made.

    At most one reduction is in flight, so the scratch memory is that of two buckets where
    gradients arrive in order.
    """

    def __init__(
        self,
        layout: BufferLayout,
        parameters: Mapping[str, Parameter],
        dtype: mstype.Type,
        plan: GradPlan,
    ) -> None:
        self.reduction: Reduction = plan.reduction
        self._overlap = plan.overlap
        self._in_flight: _ShardedBucket | None = None
        self.pool = ScratchPool(max((span.size for span in layout.buckets), default=0), dtype)
        self.flat = memory.zeros((layout.size // plan.reduction.shards,), dtype)
        self.buckets, start = [], 0
        for span in layout.buckets:
            size = span.size // plan.reduction.shards
            shard = memory.view_of(self.flat, start, (size,))
            self.buckets.append(_ShardedBucket(span, plan, self.pool, shard))
            start += size
        self._hooks = [
            (
                parameters[slot.name],
                attach_sink(parameters[slot.name], _ScratchSink(self, bucket, index), dtype),
            )
            for bucket in self.buckets
            for index, slot in enumerate(bucket.span.slots)
        ]

    def reduce(self, bucket: _ShardedBucket) -> None:
        """Reduce a bucket, while the backward goes on if reductions overlap."""
        self._complete()
        bucket.start(async_op=self._overlap)
        self._in_flight = bucket
        if not self._overlap:
            self._complete()

    def _complete(self) -> None:
        if self._in_flight is not None and self._in_flight.is_reducing:
            self._in_flight.complete()
        self._in_flight = None

    def set_sync(self, enabled: bool) -> None:
        """Nothing waits for the last micro-batch here."""

    def zero(self) -> None:
        """Forget all gradients."""
        memory.zero_(self.flat)

    def start(self) -> None:
        """Reduce buckets that miss a gradient too."""
        for bucket in self.buckets:
            if bucket.is_dirty:
                self.reduce(bucket)

    def finish(self) -> None:
        """Complete all reductions."""
        self.start()
        self._complete()
        if self.reduction.replicas is not None:
            comm.all_reduce(self.flat, self.reduction.op, self.reduction.replicas)

    def shard(self, index: int) -> Tensor:
        """Reduced gradients of bucket ``index`` that this rank owns."""
        return self.buckets[index].shard

    def detach(self) -> None:
        """Take the buffer away from its parameters."""
        for param, hook in self._hooks:
            detach_sink(param, hook)

    @property
    def num_bytes(self) -> int:
        """Memory held, scratch included."""
        return memory.num_bytes(self.flat) + self.pool.num_bytes
