# SPDX-License-Identifier: Apache-2.0
"""A kernel set that tells how long its kernels take, forward and backward, around another one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd

Take = Callable[[str, float, float, dict[str, Any]], None]
"""(kernel, start, end, what is told about it), in seconds of this rank's clock."""

_FRAMES = 12


class RecordingKernels:
    """Passes every call on.

    Args:
        inner: computes.
        take: is told every call that is over.
        with_shapes: also tell shapes and types of the tensors it got.
        with_stack: also tell from where it was called.
    """

    def __init__(self, inner: Any, take: Take, *, with_shapes: bool, with_stack: bool) -> None:
        self.inner = inner
        self._take, self._with_shapes, self._with_stack = take, with_shapes, with_stack
        self._is_busy = False

    def __getattr__(self, name: str) -> Any:
        """A kernel, or what else the set has; found once."""
        found = getattr(self.inner, name)
        if callable(found) and name not in ("describe", "unavailable"):
            found = self._recorded(name, found)
        setattr(self, name, found)
        return found

    def _recorded(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def backward(run: Callable[..., Any], ctx: Any, *gradients: Any) -> Any:
            return self._timed(f"{name} backward", run, (ctx, *gradients), {})

        def recorded(*arguments: Any, **named: Any) -> Any:
            with autograd.backward_through(backward):
                return self._timed(name, kernel, arguments, named)

        return recorded

    def _timed(
        self, name: str, work: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Result of a call that is told, unless it is part of one that will be."""
        if self._is_busy:
            return work(*arguments, **named)
        self._is_busy = True
        start = time.perf_counter()
        try:
            result = work(*arguments, **named)
        finally:
            self._is_busy = False
        end = time.perf_counter()
        facts: dict[str, Any] = {}
        if self._with_shapes:
            facts["inputs"] = [
                f"{one.dtype}{list(one.shape)}" for one in arguments if isinstance(one, Tensor)
            ]
        if self._with_stack:
            facts["stack"] = _callers()
        self._take(name, start, end, facts)
        return result


def _callers() -> list[str]:
    """Files, lines and functions that led here, the innermost first."""
    lines: list[str] = []
    frame = sys._getframe(4)  # this function, two around the kernel, and its front in ``ops``
    while len(lines) < _FRAMES:
        code = frame.f_code
        lines.append(f"{code.co_filename}:{frame.f_lineno} {code.co_name}")
        if frame.f_back is None:
            break
        frame = frame.f_back
    return lines
