# SPDX-License-Identifier: Apache-2.0
"""What scripts written for MindSpore's own trainers say about their device, on this machine.

They name an Ascend NPU and graph mode. ``apply`` follows what holds here and says the rest in a
line; ``cover_scripts`` does so for scripts that call ``mindspore.set_context`` themselves.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

import mindspore as ms
from mindspore import context

from mindspeed_ms.backend import device, env, launch

TARGET_VARIABLE = device.TARGET_VARIABLE
GRAPH_MODE_LINE = "graph mode is not used: mindspeed_ms runs MindSpore's dynamic graph"

_set_context = context.set_context
_set_device = ms.set_device


def apply(asked: Mapping[str, Any]) -> list[str]:
    """Set MindSpore's context to what of a script's wishes holds on this machine.

    Args:
        asked: keywords of ``mindspore.set_context``; None is "not given". A mode that was set
            before counts as asked for.

    Returns:
        Lines that say what does not hold, and why.

    Raises:
        RuntimeError: the device is not there, and MINDSPEED_MS_DEVICE_TARGET does not say to take
            the CPU instead.
        ValueError: a keyword MindSpore does not know.
    """
    wishes = {name: value for name, value in asked.items() if value is not None}
    lines = []
    target = wishes.pop("device_target", None)
    if target:
        lines += _follow_target(str(target))
    if _is_graph_mode(wishes.pop("mode", context.get_context("mode"))):
        lines.append(GRAPH_MODE_LINE)
    memory = wishes.pop("max_device_memory", None)
    if memory:
        if device.is_ascend():
            ms.runtime.set_memory(max_size=str(memory))
        else:
            lines.append(f"max_device_memory {memory} has no effect on CPU, which has no pool")
    told = launch.told_by_launcher()
    if told is not None and told[1] > 1 and (number := wishes.pop("device_id", None)):
        # MindSpore refuses another device than the one that the ranks have met on.
        lines.append(f"device_id {number}: each rank has the device that its launcher gives it")
    _set_context(mode=ms.PYNATIVE_MODE, **wishes)
    return lines


def _is_graph_mode(mode: object) -> bool:
    return mode == ms.GRAPH_MODE or str(mode).upper() == "GRAPH_MODE"


def _follow_target(target: str) -> list[str]:
    """Check a device against this machine's; one line if the CPU stands in for it."""
    if target.lower() == device.platform():
        return []
    if env.get(TARGET_VARIABLE, "") != "":
        return [f"device_target {target}: the CPU is used instead, {TARGET_VARIABLE} says so"]
    if device.is_ascend():
        raise RuntimeError(
            f"device_target is {target!r}, but this machine computes on its NPU; leave it out, or "
            f"start with {TARGET_VARIABLE}=CPU"
        )
    try:
        _set_context(device_target=target)
        reason = f"Unsupported device target {target}"
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].partition(" Please check")[0].rstrip(".")
    raise RuntimeError(
        f'{reason}; this machine has CPU only: device_target="CPU", or {TARGET_VARIABLE}=CPU to '
        "run Ascend scripts unchanged"
    )


def cover_scripts() -> None:
    """From here on ``mindspore.set_context`` and ``set_device`` are followed as ``apply`` does.

    For scripts that were written for another trainer; idempotent. The lines go to standard error,
    each once, on rank 0.
    """
    ms.set_context = context.set_context = _covered_context
    ms.set_device = _covered_device
    _say(apply({}))


@functools.wraps(_set_context)
def _covered_context(**keywords: Any) -> None:  # noqa: ANN401  (MindSpore's signature)
    _say(apply(keywords))


@functools.wraps(_set_device)
def _covered_device(device_target: str, device_id: int | None = None) -> None:
    if not device.is_ascend() and device_target.lower() == "cpu":
        return  # it is there; MindSpore refuses the call once its runtime has begun
    if device_target.lower() == device.platform():
        _set_device(device_target, device_id)
    else:
        _say(_follow_target(device_target))


_said: set[str] = set()


def _say(lines: list[str]) -> None:
    for line in lines:
        if line not in _said and env.stated_rank() == 0:
            sys.stderr.write(f"{line}\n")
        _said.add(line)
