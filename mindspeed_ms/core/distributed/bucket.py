# SPDX-License-Identifier: Apache-2.0
"""Buckets: parts of the gradients that are reduced over the ranks as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group, ReduceOp, Work
from mindspeed_ms.plan.param_layout import BucketSpan


class BucketState(Enum):
    """Where a bucket stands within a step."""

    WAITING = "waiting"
    """Gradients are being accumulated."""
    REDUCING = "reducing"
    """The reduction has been started."""
    REDUCED = "reduced"
    """The shard (or all) of the bucket holds the mean over the ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduction:
    """How the gradients of a buffer become means over the data parallel ranks."""

    group: Group
    """Ranks that hold the same parameters; with shards, the ranks that share one optimizer."""

    replicas: Group | None = None
    """Ranks that own the same shard in other optimizer instances; None: there is one instance."""

    is_sharded: bool = False
    """Scatter the sum over ``group`` instead of giving it to every rank."""

    scale: float = 1.0
    """Factor on the gradients before they are summed."""

    op: ReduceOp = ReduceOp.SUM

    check_finite: bool = False
    """Look for NaN and infinity before the reduction mixes the ranks' gradients."""

    @property
    def shards(self) -> int:
        """Number of parts a bucket is cut into."""
        return self.group.size if self.is_sharded else 1

    @property
    def mixes_ranks(self) -> bool:
        """Whether a result holds gradients of other ranks too."""
        return self.group.size > 1 or self.replicas is not None

    @property
    def shard_rank(self) -> int:
        """The part this rank owns."""
        return self.group.rank if self.is_sharded else 0


def add_(total: Tensor, term: Tensor) -> None:
    """``total += term`` in place; 16-bit totals are added in fp32 and rounded once."""
    if total.dtype == mstype.float32:
        ops.axpy_(total, term)
        return
    wide = memory.empty(total.shape)
    ops.copy_cast_(wide, total)
    ops.axpy_(wide, term)
    ops.copy_cast_(total, wide)


def scale_(tensor: Tensor, factor: float) -> None:
    """``tensor *= factor`` in place, for every floating type."""
    if factor == 1.0:
        return
    if tensor.dtype == mstype.float32:
        ops.scale_(tensor, factor)
        return
    wide = memory.empty(tensor.shape)
    ops.copy_cast_(wide, tensor)
    ops.scale_(wide, factor)
    ops.copy_cast_(tensor, wide)


def first_not_finite(span: BucketSpan, grads: Tensor) -> str | None:
    """Name of the first parameter of a bucket with a NaN or infinite gradient."""
    # Squares of fp32 numbers cannot overflow the fp64 sum: it is finite when all elements are.
    if math.isfinite(ops.l2_norm_squared(grads)):
        return None
    for slot in span.slots:
        part = memory.view_of(grads, slot.start - span.start, (slot.end - slot.start,))
        if not math.isfinite(ops.l2_norm_squared(part)):
            return slot.name
    raise AssertionError("the sum of squares is not finite, but that of every parameter is")


class Bucket:
    """Consecutive gradients of a buffer, complete when each was accumulated as often as usual.

    How often is learnt in the first step, which therefore reduces at its end: a table that the
    embedding and the head share gets two contributions per micro-batch, others one.

    Args:
        span: the bucket's place in the buffer.
        grads: its part of the buffer, one-dimensional.
        reduction: how it is reduced.
        report: called with the name of a parameter whose local gradient is not finite.
    """

    def __init__(
        self,
        span: BucketSpan,
        grads: Tensor,
        reduction: Reduction,
        report: Callable[[str], None],
    ) -> None:
        self.span, self.grads, self.reduction = span, grads, reduction
        self.state = BucketState.WAITING
        start, end = span.shard(reduction.shard_rank, reduction.shards)
        self.shard = memory.view_of(grads, start - span.start, (end - start,))
        """The part of ``grads`` that holds the result on this rank."""
        self._report = report
        self._counts = [0] * len(span.slots)
        self._expected: list[int] | None = None
        self._work: Work | None = None

    def main_grad(self, index: int) -> Tensor:
        """Where the gradient of slot ``index`` is accumulated."""
        slot = self.span.slots[index]
        return memory.view_of(self.grads, slot.start - self.span.start, slot.shape)

    def mark_ready(self, index: int, counts: bool) -> None:
        """Note that slot ``index`` was accumulated; ``counts`` in the last micro-batch only.

        Raises:
            RuntimeError: the bucket is being reduced already, without this contribution.
        """
        if self.state is not BucketState.WAITING:
            raise RuntimeError(
                f"a gradient of {self.span.slots[index].name} arrived on rank {comm.get_rank()} "
                "after its bucket was reduced; run all micro-batches but the last under "
                "no_sync(), or switch overlap_grad_reduce off"
            )
        if counts:
            self._counts[index] += 1

    @property
    def is_complete(self) -> bool:
        """True when every gradient has arrived; unknown, hence False, in the first step."""
        if self._expected is None:
            return False
        return all(
            count >= expected for count, expected in zip(self._counts, self._expected, strict=True)
        )

    def start(self, async_op: bool) -> None:
        """Start the reduction, unless it was started before."""
        if self.state is not BucketState.WAITING:
            return
        self.state = BucketState.REDUCING
        reduction = self.reduction
        if reduction.check_finite and reduction.mixes_ranks:
            name = first_not_finite(self.span, self.grads)
            if name is not None:
                self._report(name)
        scale_(self.grads, reduction.scale)
        if reduction.group.size == 1:
            return
        if reduction.is_sharded:
            self._work = comm.reduce_scatter_tensor(
                self.shard, self.grads, reduction.op, reduction.group, async_op
            )
        else:
            self._work = comm.all_reduce(self.grads, reduction.op, reduction.group, async_op)

    def finish(self) -> None:
        """Complete the reduction; whatever was not started is started now."""
        self.start(async_op=False)
        if self._work is not None:
            self._work.wait()
            self._work = None
        if self.state is BucketState.REDUCING and self.reduction.replicas is not None:
            comm.all_reduce(self.shard, self.reduction.op, self.reduction.replicas)
        self.state = BucketState.REDUCED
        if self._expected is None:
            # A gradient that was missing once (an expert without tokens) may arrive another time.
            self._expected = [max(1, count) for count in self._counts]

    def reset(self) -> None:
        """Be ready for the next step; the gradients are the buffer's to clear."""
        self.state = BucketState.WAITING
        self._counts = [0] * len(self.span.slots)
