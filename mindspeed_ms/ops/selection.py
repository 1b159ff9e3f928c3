"""Which kernel set serves the public functions of ``ops``; decided once per process."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

from mindspeed_ms.backend import device
from mindspeed_ms.ops import ascend, cpu, portable

Kernels = Literal["auto", "portable", "cpu", "ascend"]

_SETS: dict[str, ModuleType] = {"portable": portable, "cpu": cpu, "ascend": ascend}


class _Selection:
    """Holder of the one process-wide choice."""

    __slots__ = ("kernels", "name", "reason")

    def __init__(self) -> None:
        self.kernels: ModuleType | None = None
        self.name = ""
        self.reason = ""


_SELECTION = _Selection()


def select(kernels: Kernels = "auto") -> str:
    """Choose the kernel set of this process; returns its name.

    ``auto`` takes the fastest set that works here: ``ascend`` on an NPU; on CPU ``cpu`` when its
    native library can be loaded, else ``portable``. A set that is asked for by name is never
    replaced by another one.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the named set cannot run here; the message says why and what to do.
    """
    if kernels == "auto":
        name = "ascend" if device.is_ascend() else "cpu"
        reason = _SETS[name].unavailable()
        if reason:
            name = "portable"
    elif kernels in _SETS:
        name, reason = kernels, _SETS[kernels].unavailable()
        if reason:
            raise RuntimeError(f"kernel set {kernels!r} was requested but cannot run: {reason}")
    else:
        raise ValueError(f"unknown kernel set {kernels!r}; use one of auto, {', '.join(_SETS)}")
    device.initialize()
    _SELECTION.kernels, _SELECTION.name, _SELECTION.reason = _SETS[name], name, reason
    return name


def current() -> ModuleType:
    """The chosen set; the first use of an operation chooses ``auto``."""
    if _SELECTION.kernels is None:
        select()
    assert _SELECTION.kernels is not None, "select() always stores a set"
    return _SELECTION.kernels


def selected() -> str:
    """Name of the chosen set."""
    current()
    return _SELECTION.name


def report() -> str:
    """One or two lines for the start-up log: the set, how it computes, what is missing."""
    line = f"ops: {selected()} kernels, {current().describe()}"
    if _SELECTION.reason:
        line += f"\nops: {_SELECTION.reason}"
    return line
