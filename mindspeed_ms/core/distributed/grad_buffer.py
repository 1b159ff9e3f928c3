# SPDX-License-Identifier: Apache-2.0
"""Gradient buffers: where gradients are accumulated, and when their buckets are reduced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.core.distributed.bucket import Bucket, BucketState, Reduction, add_
from mindspeed_ms.core.parameter import GradSink
from mindspeed_ms.plan.param_layout import BufferLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class GradPlan:
    """What the buffers of one model chunk have in common."""

    reduction: Reduction
    overlap: bool
    """Start reducing a bucket when it is complete."""
    report: Callable[[str], None]
    """Called with the name of a parameter whose local gradient is not finite."""


class Sink(Protocol):
    """Where the gradient of one parameter goes; ``GradSink`` is one."""

    @property
    def main_grad(self) -> Tensor:
        """What to add the gradient to."""

    def mark_ready(self) -> None:
        """Note one accumulation."""


class Gradients(Protocol):
    """Gradients of some parameters, bucket by bucket."""

    reduction: Reduction
    flat: Tensor
    """What lasts: all gradients, or this rank's shards."""

    def zero(self) -> None:
        """Forget all gradients."""

    def start(self) -> None:
        """Start the reductions that have not been started."""

    def finish(self) -> None:
        """Complete all reductions."""

    def shard(self, index: int) -> Tensor:
        """Reduced gradients of bucket ``index`` that this rank owns, one-dimensional."""

    def set_sync(self, enabled: bool) -> None:
        """Say whether the gradients that arrive from now on are the last of the step."""

    def detach(self) -> None:
        """Take the buffer away from its parameters."""

    @property
    def num_bytes(self) -> int:
        """Memory held."""


def attach_sink(parameter: Parameter, sink: Sink, dtype: mstype.Type) -> autograd.HookHandle:
    """Let the gradient of a parameter go to a sink.

    Gradients that the engine computes are taken from it, so it never accumulates. Operations that
    add by themselves do it in fp32 only.
    """
    is_wide = dtype == mstype.float32
    parameter.grad_sink = sink if is_wide else None
    add = ops.axpy_ if is_wide else add_

    def accumulate(grad: Tensor) -> None:
        add(sink.main_grad, grad)
        sink.mark_ready()

    return autograd.take_gradients(parameter, accumulate)


def detach_sink(parameter: Parameter, hook: autograd.HookHandle) -> None:
    """Undo ``attach_sink``."""
    hook.remove()
    parameter.grad_sink = None
    parameter.main_grad = None


class GradBuffer:
    """All gradients in one flat buffer, reduced in place.

    Buckets are reduced in their own order on every rank, whatever the order in which they become
    complete: collectives of a group must not overtake each other.
    """

    def __init__(
        self,
        layout: BufferLayout,
        parameters: Mapping[str, Parameter],
        dtype: mstype.Type,
        plan: GradPlan,
    ) -> None:
        self.reduction = plan.reduction
        self.flat = memory.zeros((layout.size,), dtype)
        self.buckets = [
            Bucket(
                span,
                memory.view_of(self.flat, span.start, (span.size,)),
                plan.reduction,
                plan.report,
            )
            for span in layout.buckets
        ]
        self._overlap = plan.overlap
        self._is_last_microbatch = True
        self._next = 0
        self._hooks = []
        for bucket in self.buckets:
            for index, slot in enumerate(bucket.span.slots):
                param = parameters[slot.name]
                sink = GradSink(
                    main_grad=bucket.main_grad(index),
                    mark_ready=partial(self._mark_ready, bucket, index),
                )
                param.main_grad = sink.main_grad
                self._hooks.append((param, attach_sink(param, sink, dtype)))

    def _mark_ready(self, bucket: Bucket, index: int) -> None:
        bucket.mark_ready(index, counts=self._is_last_microbatch)
        if self._overlap and self._is_last_microbatch:
            while self._next < len(self.buckets) and self.buckets[self._next].is_complete:
                self.buckets[self._next].start(async_op=True)
                self._next += 1

    def set_sync(self, enabled: bool) -> None:
        """Say whether the gradients that arrive from now on are the last of the step."""
        self._is_last_microbatch = enabled

    def zero(self) -> None:
        """Forget all gradients; NaN too."""
        ops.zero_(self.flat)
        self._next = 0
        for bucket in self.buckets:
            bucket.reset()

    def start(self) -> None:
        """Start the reductions that have not been started."""
        for bucket in self.buckets:
            bucket.start(async_op=self._overlap)
        self._next = len(self.buckets)

    def finish(self) -> None:
        """Complete all reductions."""
        if any(bucket.state is not BucketState.REDUCED for bucket in self.buckets):
            self.start()
        for bucket in self.buckets:
            bucket.finish()

    def shard(self, index: int) -> Tensor:
        """Reduced gradients of bucket ``index`` that this rank owns."""
        return self.buckets[index].shard

    def detach(self) -> None:
        """Take the buffer away from its parameters."""
        for param, hook in self._hooks:
            detach_sink(param, hook)

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return memory.num_bytes(self.flat)
