# SPDX-License-Identifier: Apache-2.0
"""Which kernel set serves the public functions of ``ops``; decided once per process."""

from __future__ import annotations

from typing import Any, cast

from mindspeed_ms.backend import device
from mindspeed_ms.ops import ascend, cpu, portable
from mindspeed_ms.ops.kernel_set import KernelSet
from mindspeed_ms.ops.recording import RecordingKernels, Take

SETS: dict[str, KernelSet] = {"portable": portable, "cpu": cpu, "ascend": ascend}


class Choice:
    """The one process-wide choice; ``ops`` calls its ``kernels`` directly."""

    kernels: KernelSet
    name: str
    reason: str
    """Why a faster set is not used; empty when there is none."""

    def __getattr__(self, attribute: str) -> Any:
        """Choose ``auto``: nothing was chosen before, or the attribute would have been found."""
        if attribute not in Choice.__annotations__:
            raise AttributeError(f"a choice of kernels has no {attribute!r}")
        select()
        return getattr(self, attribute)


chosen = Choice()


def select(kernels: str = "auto") -> str:
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
        reason = SETS[name].unavailable()
        if reason:
            name = "portable"
    elif kernels in SETS:
        name, reason = kernels, SETS[kernels].unavailable()
        if reason:
            raise RuntimeError(f"kernel set {kernels!r} was requested but cannot run: {reason}")
    else:
        raise ValueError(f"unknown kernel set {kernels!r}; use one of auto, {', '.join(SETS)}")
    device.initialize()
    chosen.kernels, chosen.name, chosen.reason = SETS[name], name, reason
    return name


def start_recording(take: Take, *, with_shapes: bool = False, with_stack: bool = False) -> None:
    """From now on tell ``take`` about every kernel; see ``RecordingKernels``."""
    recording = RecordingKernels(
        chosen.kernels, take, with_shapes=with_shapes, with_stack=with_stack
    )
    chosen.kernels = cast("KernelSet", recording)


def stop_recording() -> None:
    """Undo ``start_recording``."""
    if isinstance(chosen.kernels, RecordingKernels):
        chosen.kernels = chosen.kernels.inner


def selected() -> str:
    """Name of the chosen set."""
    return chosen.name


def report() -> str:
    """One or two lines for the start-up log: the set, how it computes, what is missing."""
    line = f"ops: {chosen.name} kernels, {chosen.kernels.describe()}"
    if chosen.reason:
        line += f"\nops: {chosen.reason}"
    return line
