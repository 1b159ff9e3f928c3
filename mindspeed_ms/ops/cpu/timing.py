# SPDX-License-Identifier: Apache-2.0
"""Where the time of a step goes: seconds inside the native library, by entry point and sizes.

Nothing is measured unless ``measured()`` is active; it then stands in front of every entry point,
at the cost of about a microsecond per call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mindspeed_ms.ops.cpu.library import SIZE_ARGUMENTS, native

Call = tuple[str, tuple[int, ...]]
"""Entry point and the sizes it was called with, in the order of its arguments."""


@dataclass(slots=True)
class CallTimes:
    """Sums over all calls so far."""

    seconds: dict[Call, float] = field(default_factory=dict)
    calls: dict[Call, int] = field(default_factory=dict)
    attention_thread_seconds: float = 0.0
    """Time of all threads inside attention."""
    attention_product_seconds: float = 0.0
    """The part of it in which blocks are multiplied, and packed for that."""

    def of(self, *names: str) -> float:
        """Seconds in some entry points."""
        return sum(seconds for (name, _), seconds in self.seconds.items() if name in names)


def _timed(
    name: str, function: Callable[..., Any], sizes: tuple[int, ...], times: CallTimes
) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        key = (name, tuple(arguments[index] for index in sizes))
        spent = time.perf_counter() - start
        times.seconds[key] = times.seconds.get(key, 0.0) + spent
        times.calls[key] = times.calls.get(key, 0) + 1
        return result

    return call


@contextmanager
def measured() -> Iterator[CallTimes]:
    """Measure every call until the context ends; one at a time.

    Raises:
        RuntimeError: there is no native library.
    """
    times = CallTimes()
    originals = {name: getattr(native, name) for name in SIZE_ARGUMENTS}
    native.measure_attention(True)
    try:
        for name, sizes in SIZE_ARGUMENTS.items():
            setattr(native, name, _timed(name, originals[name], sizes, times))
        yield times
    finally:
        for name, function in originals.items():
            setattr(native, name, function)
        native.measure_attention(False)
        times.attention_thread_seconds = native.attention_seconds(False)
        times.attention_product_seconds = native.attention_seconds(True)
