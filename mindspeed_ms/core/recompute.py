# SPDX-License-Identifier: Apache-2.0
"""Recomputation: keep less in forward, compute it again in backward.

``checkpoint`` keeps only the inputs of a function and repeats the whole function in backward.
``forgotten`` drops one output that is cheap to compute again, while the function it came from is
not repeated. In both, every call has its own state, so many micro-batches can be in flight, and
random draws are repeated from the states they had in forward (masks are identical).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.core import run_state
from mindspeed_ms.core.tensor_parallel.random import get_rng_tracker


class _Checkpoint(autograd.Function):
    """y = f(x1, ..., xn), keeping only x1, ..., xn; backward runs f again, with a graph."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.random_states = get_rng_tracker().get_states()
        ctx.early = None
        left = run_state.member_of_current(_Left).calls
        if left is not None:
            left.append(ctx)
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        leaves, output = ctx.early or _again(ctx)
        ctx.early = None
        with autograd.enable_grad():
            autograd.backward(output, grad)
        grads = tuple(autograd.get_grad(leaf) for leaf in leaves)
        return None, *grads


def _again(ctx: Any) -> tuple[list[Tensor], Tensor]:
    """The inputs as leaves, and the output with its graph."""
    leaves = [
        autograd.requires_grad_(autograd.detach(value), autograd.requires_grad(value))
        for value in ctx.saved_tensors
    ]
    with autograd.enable_grad(), _random_states(ctx.random_states):
        return leaves, ctx.function(*leaves)


@dataclass(slots=True)
class _Left:
    """What forwards leave to be computed again; None: nobody asks."""

    calls: list[Any] | None = None


@contextmanager
def leaving() -> Iterator[list[Any]]:
    """The calls of ``checkpoint`` in the block, for ``compute_early``."""
    left = run_state.member_of_current(_Left)
    before, left.calls = left.calls, []
    try:
        yield left.calls
    finally:
        left.calls = before


def compute_early(calls: list[Any]) -> None:
    """Compute again now what backward would compute first; it needs no gradient."""
    with leaving():  # what these calls leave in turn is theirs
        for ctx in calls:
            ctx.early = _again(ctx)


@contextmanager
def _random_states(states: dict[str, tuple[int, int]]) -> Iterator[None]:
    """Draw from earlier states for a block, then go on from the present ones."""
    tracker = get_rng_tracker()
    present = tracker.get_states()
    tracker.set_states(states)
    try:
        yield
    finally:
        tracker.set_states(present)


def checkpoint(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)`` without keeping anything but the inputs until backward.

    Args:
        function: computes one tensor; called again in backward, when it must do the same. It may
            use parameters, whose gradients accumulate as usual, and draw from the random streams.
        inputs: tensors.
    """
    if not autograd.is_grad_enabled():
        return function(*inputs)
    if not any(autograd.requires_grad(value) for value in inputs):
        # The engine sees only the inputs; parameters used inside need their gradient all the same.
        inputs = (autograd.requires_grad_(autograd.detach(inputs[0])), *inputs[1:])
    return _Checkpoint.apply(function, *inputs)


@dataclass(frozen=True, slots=True)
class _Forgotten:
    """In place of a saved tensor: how to compute it again."""

    function: Callable[..., Tensor]
    inputs: tuple[Any, ...]


@contextmanager
def forgotten(output: Tensor, function: Callable[..., Tensor], *inputs: Any) -> Iterator[None]:
    """Operations in the block that save ``output`` compute it again in backward instead.

    Args:
        output: what ``function(*inputs)`` returned; the operations that use it are in the block.
        function: a cheap function without random draws.
        inputs: its arguments; they must be alive in backward anyway for this to save memory.
    """
    where, shape = memory.address(output), tuple(output.shape)

    def pack(saved: Tensor) -> Tensor | _Forgotten:  # outlives the block: it must not hold output
        is_output = tuple(saved.shape) == shape and memory.address(saved) == where
        return _Forgotten(function, inputs) if is_output else saved

    with autograd.saved_tensors_hooks(pack, _restored):
        yield


def _restored(packed: Tensor | _Forgotten) -> Tensor:
    if isinstance(packed, _Forgotten):
        with autograd.no_grad():
            return packed.function(*packed.inputs)
    return packed
