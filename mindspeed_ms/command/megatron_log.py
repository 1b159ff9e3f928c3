# SPDX-License-Identifier: Apache-2.0
"""Reads logs of Megatron's kind: the lines of iterations, and the table of arguments.

Source: Megatron-LM ``training_log`` and ``print_args`` (shape of the lines).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from mindspeed_ms.files.regular_file import read_bytes

_LINE = re.compile(r"\biteration\s+(\d+)/\s*(\d+)\s*\|(.*)")
_PAIR = re.compile(r"\s*([^:|]+?)\s*:\s*([-+.\w]+)\s*$")
_ARGUMENT = re.compile(r"^(?:\[[^\]]*\]:?\s*)?\s{0,3}(\w+) \.{3,} (.*?)\s*$")


@dataclass(frozen=True, slots=True)
class LogLine:
    """What a line says of an iteration, or of the iterations since the line before."""

    iteration: int
    values: dict[str, float] = field(default_factory=dict)
    """By the names of the log, such as ``lm loss``, ``learning rate``, ``grad norm``."""


def read_log(path: Path) -> list[LogLine]:
    """Lines of a log; of an iteration that was done again the last one.

    Raises:
        OSError: it cannot be read.
        ValueError: it has no line of an iteration.
    """
    lines: dict[int, LogLine] = {}
    for text in read_bytes(path).decode("utf-8", "replace").splitlines():
        match = _LINE.search(text)
        if match is None:
            continue
        values = {}
        for part in match[3].split("|"):
            pair = _PAIR.match(part)
            number = None if pair is None else _number(pair[2])
            if pair is not None and number is not None:
                values[pair[1]] = number
        iteration = int(match[1])
        if lines and iteration <= next(reversed(lines)):  # they ascend: a run went back
            lines = {other: line for other, line in lines.items() if other < iteration}
        lines[iteration] = LogLine(iteration, values)
    if not lines:
        raise ValueError(
            f"{path} has no line 'iteration N/ M | ...' of Megatron's; name a log with such lines"
        )
    return list(lines.values())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_arguments(path: Path) -> dict[str, str]:
    """Arguments that a log prints, by name; empty if it prints none."""
    found: dict[str, str] = {}
    for text in read_bytes(path).decode("utf-8", "replace").splitlines():
        match = _ARGUMENT.match(text)
        if match is not None:
            found[match[1]] = match[2]
    return found
