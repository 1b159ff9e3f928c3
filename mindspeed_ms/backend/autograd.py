# SPDX-License-Identifier: Apache-2.0
"""The tape: forward builds a graph, ``backward`` walks it and fills the leaves' gradients.

MindSpore's dynamic graph has such a tape under private names; they are used here and nowhere else.
Two facts shape the interface. The engine accumulates a second gradient into a leaf out of place,
and wrongly so for transposed gradients on CPU: whoever owns a parameter takes its gradients one by
one (``take_gradients``). And one flag of the process says
whether there is a tape at all: MindSpore's own ``value_and_grad`` works only while it is off, and
an exception inside a primitive can switch it off. So it is on inside ``recording()`` only, which
steps of this package enter, and each entry switches it on anew.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import mindspore as ms
from mindspore import Parameter, Tensor
from mindspore._c_expression import FunctionBase, run_backward
from mindspore.common.api import _pynative_executor
from mindspore.graph.api import saved_tensors_hooks
from mindspore.nn import Cell

from mindspeed_ms.backend import device

__all__ = [
    "Function",
    "HookHandle",
    "backward",
    "detach",
    "enable",
    "enable_grad",
    "get_grad",
    "has_hooks",
    "in_dynamic_graph",
    "is_backward_running",
    "inference_mode",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "no_grad",
    "recording",
    "requires_grad",
    "requires_grad_",
    "saved_tensors_hooks",
    "set_grad",
    "take_gradients",
]


@dataclass
class _Depth:
    """Backward passes of this tape that are under way, and contexts in which a model serves."""

    running: int = 0
    serving: int = 0


_depth = _Depth()

RunBackward = Callable[..., Any]
"""(backward, ctx, gradients...) -> what backward returns."""


@contextmanager
def backward_through(run: RunBackward) -> Iterator[None]:
    """Let ``run`` call the backward of every operation that is applied within the block.

    Args:
        run: is given the backward and its arguments; its result counts.
    """

    def apply(operation: type[Function], *inputs: Any) -> Any:
        own = operation.backward
        # The engine reads it as it applies the operation, before forward.
        operation.backward = staticmethod(partial(run, own))
        try:
            return super(Function, operation).apply(*inputs)  # type: ignore[misc]
        finally:
            operation.backward = staticmethod(own)

    if _depth.serving or "apply" in Function.__dict__:  # no gradients, or part of a watched one
        yield
        return
    Function.apply = classmethod(apply)
    try:
        yield
    finally:
        del Function.apply


_SHARED_TUPLES: dict[tuple[bool, ...], tuple[bool, ...]] = {}


class Function(FunctionBase):
    """Base of operations with a hand-written gradient.

    A subclass defines static ``forward(ctx, *inputs)`` and ``backward(ctx, *output_grads)``; the
    latter returns one gradient (or None) per input of ``forward``. ``ctx.save_for_backward`` and
    ``ctx.saved_tensors`` carry tensors, plain attributes of ``ctx`` the rest. State lives in
    ``ctx``, one per call, so several micro-batches can be in flight. Call with ``apply``.
    """

    _has_setup_context = False  # read by the engine, which else asks for a third static method

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in cls.__dict__:
            cls.forward = staticmethod(_with_shared_tuple(cls.forward))

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for ``backward``, which finds them in ``ctx.saved_tensors``."""
        self.saved_tensors = tensors


def _with_shared_tuple(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, with the engine's new tuple of flags replaced by the one of equal flags.

    The engine makes a tuple per call, ``ctx.needs_input_grad``, and never gives up its reference:
    about 60 bytes of every call would stay for ever, gigabytes in a long run. Its setter does give
    up the old tuple, so only the count of references to a few tuples grows.
    """

    def shared(ctx: Any, *inputs: Any) -> Any:
        needed = ctx.needs_input_grad
        ctx.needs_input_grad = _SHARED_TUPLES.setdefault(needed, needed)
        return forward(ctx, *inputs)

    return shared


def has_hooks(cell: Cell) -> bool:
    """Whether functions wait for a call of the cell, or for its gradients."""
    # A cell makes each of these as it is first asked for.
    return bool(
        cell._forward_pre_hook
        or cell._forward_hook
        or cell._backward_pre_hook
        or cell._backward_hook
    )


class HookHandle(Protocol):
    """What a hook registration returns."""

    def remove(self) -> None:
        """Take the hook away."""


def enable() -> None:
    """Put the process on the tape for good: for scripts that call layers outside of a step."""
    device.initialize()
    _pynative_executor.set_grad_flag(True)


@contextmanager
def recording() -> Iterator[None]:
    """Context in which operations are recorded; afterwards the process is as it was before.

    Inside, MindSpore is in PyNative mode, the only one that has a tape.
    """
    with in_dynamic_graph():
        flag = _pynative_executor.grad_flag()
        enable()
        try:
            yield
        finally:
            # Not left on: the first value_and_grad of somebody else would find no graph of its own.
            _pynative_executor.set_grad_flag(flag)


@contextmanager
def in_dynamic_graph() -> Iterator[None]:
    """Context with MindSpore in PyNative mode, whatever mode a script has set."""
    mode = ms.get_context("mode")
    if mode != ms.PYNATIVE_MODE:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        yield
    finally:
        if mode != ms.PYNATIVE_MODE:
            ms.set_context(mode=mode)


def is_grad_enabled() -> bool:
    """True when operations are being recorded."""
    return bool(_pynative_executor.grad_flag()) and bool(_pynative_executor.enable_grad())


@contextmanager
def _grad_mode(recorded: bool) -> Iterator[None]:
    # Beside the flag of recording(): both must be on for an operation to be recorded, and the
    # engine itself turns this one off inside Function.forward and .backward.
    previous = _pynative_executor.enable_grad()
    _pynative_executor.set_enable_grad(recorded)
    try:
        yield
    finally:
        _pynative_executor.set_enable_grad(previous)


def no_grad() -> AbstractContextManager[None]:
    """Context in which nothing is recorded."""
    return _grad_mode(False)


class _Unkept:
    """The ``ctx`` of an operation that has no backward."""

    def __init__(self, count: int) -> None:
        self.needs_input_grad = (False,) * count

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep nothing."""


def _unrecorded(operation: type[Function], *inputs: Any) -> Any:
    """``apply`` without the engine, which takes longer than most operations of a step."""
    return operation.forward(_Unkept(len(inputs)), *inputs)


@contextmanager
def inference_mode() -> Iterator[None]:
    """Context of ``no_grad`` in which operations are called past the tape's engine.

    Unlike ``no_grad`` it says that no gradient of these operations will ever be asked for, not even
    by computing them again; so products of few rows may take another order of sums, and results
    need not be those of training bit for bit. It holds for the process.
    """
    _depth.serving += 1
    # Not a test in apply: training would pay for it at every operation.
    Function.apply = classmethod(_unrecorded)
    try:
        with no_grad():
            yield
    finally:
        _depth.serving -= 1
        if not _depth.serving:
            del Function.apply


def is_inference_mode_enabled() -> bool:
    """True within ``inference_mode``."""
    return _depth.serving > 0


@contextmanager
def enable_grad() -> Iterator[None]:
    """Context in which operations are recorded, also inside a ``Function`` or ``no_grad``."""
    with recording(), _grad_mode(True):
        yield


def backward(
    outputs: Tensor | Sequence[Tensor],
    grads: Tensor | Sequence[Tensor | None] | None = None,
    keep_graph: bool = False,
) -> None:
    """Run the tape backwards from ``outputs`` and accumulate into the leaves that need a gradient.

    Args:
        outputs: one tensor or several, all with a recorded graph.
        grads: gradient of each output, same shapes; None means ones.
        keep_graph: keep the graph for another backward.

    Raises:
        RuntimeError: an output has no recorded graph, or its graph was already used.
    """
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    if grads is None:
        grads = (None,) * len(outputs)
    elif isinstance(grads, Tensor):
        grads = (grads,)
    seeds = tuple(
        ms.ops.ones_like(output) if grad is None else grad
        for output, grad in zip(outputs, grads, strict=True)
    )
    with recording():  # a backward of the user's own may come after the step that built the graph
        _depth.running += 1
        try:
            # No create_graph, and no inputs: gradients go to every leaf that needs one.
            run_backward(outputs, seeds, keep_graph, False, ())
        finally:
            _depth.running -= 1


def is_backward_running() -> bool:
    """Whether ``backward`` is at work, and not MindSpore's own ``value_and_grad``."""
    return _depth.running > 0


def detach(tensor: Tensor) -> Tensor:
    """The same storage without history: a leaf that needs no gradient."""
    # Not stop_gradient, an operator whose inferred types MindSpore remembers call by call.
    return tensor.data


requires_grad: Callable[[Tensor], bool] = operator.attrgetter("_requires_grad")
"""True when a gradient flows to (a leaf) or through (a result) the tensor."""


def requires_grad_(tensor: Tensor, flag: bool = True) -> Tensor:
    """Mark a leaf as needing a gradient; returns it."""
    if isinstance(tensor, Parameter):
        tensor.requires_grad = flag
    else:
        tensor.requires_grad_(flag)
    return tensor


def get_grad(tensor: Tensor) -> Tensor | None:
    """Accumulated gradient of a leaf, or None."""
    return tensor._grad


def set_grad(tensor: Tensor, grad: Tensor | None) -> None:
    """Replace or (None) clear the accumulated gradient of a leaf."""
    tensor._grad = grad


def take_gradients(parameter: Parameter, take: Callable[[Tensor], object]) -> HookHandle:
    """Hand each gradient of a parameter to ``take`` instead of accumulating it.

    ``take`` runs inside ``backward``, in the order the gradients become ready (last layer first).
    It does not run when the gradient is None, as with an operation that accumulates by itself.
    """

    def fire(_grad_inputs: tuple, _grad_outputs: tuple) -> None:
        grad = parameter._grad
        # Cleared before the next one comes: the engine's own sum is out of place, and on CPU wrong
        # where a gradient is transposed.
        parameter._grad = None
        take(grad)

    return parameter._grad_node.register_hook(fire)
