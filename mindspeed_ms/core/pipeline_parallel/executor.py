# SPDX-License-Identifier: Apache-2.0
"""Runs the plan of one pipeline stage on the tape.

Between two stages the tape is cut: a received activation becomes a leaf, and the output of a chunk
is handed over to a ``_Ticket``, a one-element tensor that stands for it in the graph. So a sent
output can be dropped while its graph waits for the gradient, and any number of micro-batches can be
in flight without a second forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.core import aux_losses, parallel_state
from mindspeed_ms.core.pipeline_parallel.p2p_communication import StageLink
from mindspeed_ms.core.recompute import compute_early, leaving
from mindspeed_ms.plan.schedule_plan import (
    ACTIVATION,
    GRADIENT,
    Backward,
    Exchange,
    Forward,
    Pass,
    Shape,
    Step,
    Transfer,
    needs_input,
    plan,
    transfer_of,
)

Report: TypeAlias = dict[str, tuple[Any, Any]]
"""What a loss function reports of a micro-batch: name -> (sum, count)."""

LossFunc = Callable[[Tensor], tuple[Tensor, float, Report]]
"""Model output -> (loss of the micro-batch, tokens in it, what to report as (sum, count))."""

ForwardStep = Callable[[Iterator, Any], tuple[Tensor, LossFunc]]
"""(data iterator, model chunk) -> (output of the chunk, its loss function)."""


@dataclass(slots=True)
class _Handover:
    """Where the gradient of a chunk's output is put before its backward starts."""

    grad: Tensor | None = None


class _Ticket(autograd.Function):
    """Stands for a chunk's output in the graph: forward drops it, backward returns its gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, handover: _Handover) -> Tensor:
        ctx.handover = handover
        return memory.zeros((1,))

    @staticmethod
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor | None, None]:
        return ctx.handover.grad, None


class _Entry(autograd.Function):
    """Identity behind the leaf of a received activation, so that the leaf is used exactly once."""

    @staticmethod
    def forward(ctx: Any, received: Tensor) -> Tensor:
        return received.view(received.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A micro-batch between the forward and the backward of a chunk."""

    root: Tensor
    """The loss, or the ticket of the output."""
    handover: _Handover | None
    """None for a loss."""
    entry: Tensor | None
    """The leaf of the received activation; None on the first virtual stage."""
    left: list[Any]
    """What is computed again before its gradient arrives."""


@dataclass(frozen=True, slots=True)
class TimedStep:
    """When a pass or a wait took place, in seconds of this rank's clock."""

    kind: str
    """``forward``, ``backward``, ``recompute``, ``exchange`` or ``wait``."""
    chunk: int
    microbatch: int
    start: float
    end: float
    transfers: str = ""
    """Of an exchange: what it starts, as Megatron names its timers."""


@dataclass(slots=True)
class StepRecord:
    """What happened on this rank in one step."""

    timeline: list[TimedStep] = field(default_factory=list)
    peak_in_flight: int = 0
    """Most micro-batches (per chunk) that waited for their backward."""


@dataclass(kw_only=True, slots=True)
class StageWork:
    """What the executor runs on this rank."""

    forward_step: ForwardStep
    data_iterators: Sequence[Any]
    """One per chunk."""
    chunks: Sequence[Any]
    stage: int = 0
    loss_scale: float = 1.0
    """Factor on the gradients of the loss."""
    recomputes_early: bool = False
    """Compute again, while the gradient is on its way, what its backward needs."""


def unwrapped(chunk: Any) -> Any:
    """The model inside a wrapper that has it as ``module``."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


class StageExecutor:
    """Runs one step of one stage.

    Args:
        shape: the schedule.
        work: model chunks, data and loss of this rank.
        link: transfers to the neighbours; None without a pipeline.
    """

    def __init__(self, shape: Shape, work: StageWork, link: StageLink | None) -> None:
        self.shape, self.work, self.link = shape, work, link
        self.reports: list[Report] = []
        self.record = StepRecord()
        self._in_flight: dict[tuple[int, int], _InFlight] = {}
        self._to_send: dict[Transfer, Tensor] = {}

    def run(self) -> list[Report]:
        """Carry out the plan; reports of the micro-batches on the last virtual stage, else []."""
        aux_losses.begin_step(self.work.loss_scale / self.shape.microbatches)
        with autograd.recording():
            for step in plan(self.shape, self.work.stage):
                self._run(step)
        if self.link is not None:
            self.link.finish()
        return self.reports

    def _run(self, step: Step) -> None:
        start = time.perf_counter()
        if isinstance(step, Exchange):
            assert self.link is not None, "a plan without stages exchanges nothing"
            self.link.start(step, self._to_send)
            for transfer in step.sends:
                del self._to_send[transfer]
            self.record.timeline.append(
                TimedStep("exchange", 0, 0, start, time.perf_counter(), _transfers_of(step))
            )
            return
        if self.work.recomputes_early and isinstance(step, Backward):
            self._recompute(step)
            start = time.perf_counter()
        received = self._take_input(step)
        if needs_input(self.shape, self.work.stage, step):
            self._note("wait", step.chunk, step.microbatch, start)
            start = time.perf_counter()
        if isinstance(step, Forward):
            output = self._forward(step, received)
            self._note("forward", step.chunk, step.microbatch, start)
        else:
            output = self._backward(step, received)
            self._note("backward", step.chunk, step.microbatch, start)
        sent = transfer_of(self.shape, self.work.stage, step)
        if sent is not None:
            assert output is not None, "a pass between stages has a result"
            self._to_send[sent] = output
        if self.link is not None:
            self.link.release_sent()

    def _note(self, kind: str, chunk: int, microbatch: int, start: float) -> None:
        self.record.timeline.append(TimedStep(kind, chunk, microbatch, start, time.perf_counter()))

    def _recompute(self, step: Backward) -> None:
        if needs_input(self.shape, self.work.stage, step):
            start = time.perf_counter()
            if self.shape.chunks > 1:
                parallel_state.set_virtual_pipeline_model_parallel_rank(step.chunk)
            compute_early(self._in_flight[step.chunk, step.microbatch].left)
            self._note("recompute", step.chunk, step.microbatch, start)

    def _take_input(self, step: Pass) -> Tensor | None:
        if not needs_input(self.shape, self.work.stage, step):
            return None
        assert self.link is not None, "a stage with neighbours has a link"
        stages, position = self.shape.stages, step.chunk * self.shape.stages + self.work.stage
        source_chunk, source = divmod(position + (-1 if isinstance(step, Forward) else 1), stages)
        sent_after = type(step)(source_chunk, step.microbatch)
        transfer = transfer_of(self.shape, source, sent_after)
        assert transfer is not None, "the neighbour sends what this stage needs"
        return self.link.take(transfer)

    def _forward(self, step: Forward, received: Tensor | None) -> Tensor | None:
        """Output to send; None on the last virtual stage, whose loss is kept."""
        work, chunk = self.work, self.work.chunks[step.chunk]
        if self.shape.chunks > 1:
            parallel_state.set_virtual_pipeline_model_parallel_rank(step.chunk)
        keeps_left = self.work.recomputes_early and not self.shape.forward_only
        with (
            _recording(not self.shape.forward_only),
            _leaving(keeps_left) as left,
        ):
            entry = None
            model = unwrapped(chunk)
            if received is not None:
                entry = received if self.shape.forward_only else autograd.requires_grad_(received)
                model.set_input_tensor(_Entry.apply(entry))
            output, loss_func = work.forward_step(work.data_iterators[step.chunk], chunk)
            if received is not None:
                model.set_input_tensor(None)
            is_last = self._is_last(step)
            if is_last:
                output, _, report = loss_func(output)
                self.reports.append(report)
            if self.shape.forward_only:
                return None if is_last else memory.contiguous(output)
            handover = None if is_last else _Handover()
            root = output if handover is None else _Ticket.apply(output, handover)
        self._in_flight[step.chunk, step.microbatch] = _InFlight(root, handover, entry, left)
        self.record.peak_in_flight = max(self.record.peak_in_flight, len(self._in_flight))
        return None if is_last else memory.contiguous(autograd.detach(output))

    def _backward(self, step: Backward, received: Tensor | None) -> Tensor | None:
        """Gradient to send; None on the first virtual stage."""
        state = self._in_flight.pop((step.chunk, step.microbatch))
        chunk = self.work.chunks[step.chunk]
        if self.shape.chunks > 1:
            parallel_state.set_virtual_pipeline_model_parallel_rank(step.chunk)
        if state.handover is None:
            value = self.work.loss_scale / self.shape.microbatches
            seed = Tensor(value, state.root.dtype)
        else:
            state.handover.grad = received
            seed = memory.from_numpy(np.ones((1,), np.float32))
        is_last = step.microbatch == self.shape.microbatches - 1
        with nullcontext() if is_last else _no_sync(chunk):
            if autograd.requires_grad(state.root):
                autograd.backward(state.root, seed)
        if state.entry is None:
            return None
        grad = autograd.get_grad(state.entry)
        if grad is None:
            return memory.zeros(state.entry.shape, state.entry.dtype)
        autograd.set_grad(state.entry, None)
        return memory.contiguous(grad)

    def _is_last(self, step: Pass) -> bool:
        return self.work.stage == self.shape.stages - 1 and step.chunk == self.shape.chunks - 1


def _transfers_of(step: Exchange) -> str:
    """``forward-send-backward-recv`` and its like."""
    parts = []
    for way, transfers in (("send", step.sends), ("recv", step.receives)):
        kinds = {transfer.kind for transfer in transfers}
        parts += [
            f"{name}-{way}"
            for name, kind in (("forward", ACTIVATION), ("backward", GRADIENT))
            if kind in kinds
        ]
    if len(parts) > 2:
        return "forward-backward-send-forward-backward-recv"
    return "-".join(parts)


def _leaving(is_kept: bool) -> AbstractContextManager[list[Any]]:
    return leaving() if is_kept else nullcontext([])


def _recording(is_recorded: bool) -> AbstractContextManager[None]:
    return nullcontext() if is_recorded else autograd.no_grad()


def _no_sync(chunk: Any) -> AbstractContextManager[None]:
    """Keep gradients local until the last micro-batch, for a wrapper that reduces them."""
    no_sync = getattr(chunk, "no_sync", None)
    return nullcontext() if no_sync is None else no_sync()
