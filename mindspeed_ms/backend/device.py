"""Which device this process computes on, and how many host threads it may use."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
from typing import Literal

import mindspore as ms
from mindspore import context

Platform = Literal["cpu", "ascend"]


@functools.lru_cache(maxsize=1)
def platform() -> Platform:
    """Device of this installation: ``ascend`` where MindSpore finds an NPU, else ``cpu``."""
    return "ascend" if context.get_context("device_target") == "Ascend" else "cpu"


def is_ascend() -> bool:
    """True when tensors live on an Ascend NPU."""
    return platform() == "ascend"


@functools.lru_cache(maxsize=1)
def initialize() -> None:
    """Bring MindSpore into the mode the package works in; the first call counts.

    Called by the first communication, kernel or recording of this package, not while it is
    imported: a script that only imports it keeps its own settings. On CPU operators are then
    launched one after the other, which is faster on few cores and lets errors surface at the call
    that caused them. MindSpore heeds that only before its first operator; results do not depend on
    it, because reading the address of a tensor waits for all operators in flight.
    """
    ms.set_context(mode=ms.PYNATIVE_MODE)
    if not is_ascend():
        ms.runtime.launch_blocking()


def cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0))


def set_num_threads(count: int) -> None:
    """Limit the threads of MindSpore's own CPU runtime to ``count`` (at least one)."""
    ms.set_context(runtime_num_threads=max(1, count))


def synchronize() -> None:
    """Wait until the device has finished all work; on CPU work is finished when a call returns."""
    if is_ascend():
        ms.runtime.synchronize()


def memory_stats() -> dict[str, int]:
    """Memory of this rank in bytes.

    ``peak``: on CPU the largest resident set of the process, on Ascend the largest allocation.
    ``current``: on CPU the resident set now, on Ascend what is allocated now.
    """
    if is_ascend():
        return {
            "peak": int(ms.runtime.max_memory_allocated()),
            "current": int(ms.runtime.memory_allocated()),
        }
    with open("/proc/self/statm", encoding="ascii") as handle:
        resident_pages = int(handle.read().split()[1])
    return {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "current": resident_pages * resource.getpagesize(),
    }


def release_cached_memory() -> None:
    """Give memory that no tensor uses back to the system."""
    if is_ascend():
        ms.runtime.empty_cache()
    else:
        ctypes.CDLL(None).malloc_trim(0)
