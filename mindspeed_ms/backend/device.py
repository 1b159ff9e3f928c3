# SPDX-License-Identifier: Apache-2.0
"""Which device this process computes on, and how many host threads it may use.

The choice is made once, by the first import: MindSpore's target is that of the installation.
"""

from __future__ import annotations

import functools
import os

import mindspore as ms

from mindspeed_ms.backend import env
from mindspeed_ms.backend.ascend_device import AscendDevice
from mindspeed_ms.backend.base import Device, Platform
from mindspeed_ms.backend.cpu_device import CpuDevice

TARGET_VARIABLE = "MINDSPEED_MS_DEVICE_TARGET"
"""``CPU``: compute there, whatever the machine has and whatever scripts ask for."""


def _chosen() -> Device:
    if (env.get(TARGET_VARIABLE) or "").lower() == "cpu":
        ms.set_context(device_target="CPU")
    return AscendDevice() if ms.get_context("device_target") == "Ascend" else CpuDevice()


CURRENT: Device = _chosen()
"""``AscendDevice`` where MindSpore finds an NPU, else ``CpuDevice``."""

synchronize = CURRENT.synchronize
memory_stats = CURRENT.memory_stats
release_cached_memory = CURRENT.release_cached_memory
set_deterministic = CURRENT.set_deterministic


def platform() -> Platform:
    """Device of this installation."""
    return CURRENT.name


def is_ascend() -> bool:
    """True when tensors live on an Ascend NPU."""
    return CURRENT.name == "ascend"


@functools.lru_cache(maxsize=1)
def initialize() -> None:
    """Bring MindSpore into the mode the package works in; the first call counts.

    Called by the first communication, kernel or recording of this package, not while it is
    imported: a script that only imports it keeps its own settings. On CPU operators are then
    launched one after the other, which is faster on few cores and lets errors surface at the call
    that caused them. MindSpore heeds that only before its first operator; results do not depend on
    it, because reading the address of a tensor waits for all operators in flight.

    Raises:
        ValueError: MINDSPEED_MS_DEVICE_TARGET names a device that is not there.
    """
    wanted = env.get(TARGET_VARIABLE)
    if wanted and wanted.lower() != CURRENT.name:
        raise ValueError(
            f"{TARGET_VARIABLE} is {wanted!r}, but this machine computes on {CURRENT.name}; set it "
            "to CPU, or unset it"
        )
    CURRENT.initialize()


def cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0))
