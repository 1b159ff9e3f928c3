# SPDX-License-Identifier: Apache-2.0
"""The record of a run, beside its checkpoints: what the report is made of.

One JSON object a line, each with its ``kind``. A run that goes on appends to it; what an earlier
part wrote about iterations that were done again is left out by the reader.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from mindspeed_ms.files.content import taken_apart
from mindspeed_ms.files.regular_file import read_bytes

FILE_NAME = "run_record.jsonl"
_FLUSH_SECONDS = 2.0
_LONGEST_LINE = 1 << 20

Entry = dict[str, Any]


class RunRecord:
    """Appends entries; a run about which there is nothing to tell leaves no file.

    Args:
        folder: of the run.
        start: facts of the entry that stands before all others.
    """

    def __init__(self, folder: Path, start: Entry) -> None:
        self._folder, self._start = folder, start
        self._handle: TextIO | None = None
        self._flushed = time.monotonic()

    def _opened(self) -> TextIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A link that somebody has put there is not followed.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(self._folder / FILE_NAME, flags, 0o666)
        self._handle = os.fdopen(descriptor, "a", encoding="utf-8")
        # A run that was killed may have left a part of a line, which ours would go on with.
        start = max(0, os.fstat(descriptor).st_size - _LONGEST_LINE)
        end = os.pread(descriptor, _LONGEST_LINE, start).rfind(b"\n") + 1
        os.ftruncate(descriptor, start + end)
        self.add("start", **self._start)
        return self._handle

    def add(self, kind: str, **facts: Any) -> None:
        """Append an entry; numbers that are none become texts, which JSON can hold.

        Raises:
            OSError: it cannot be written.
        """
        handle = self._handle or self._opened()
        line = json.dumps({"kind": kind, **_plain(facts)})
        handle.write(line + "\n")
        now = time.monotonic()
        if kind != "step" or now - self._flushed > _FLUSH_SECONDS:
            handle.flush()
            self._flushed = now
            if not os.fstat(handle.fileno()).st_nlink:  # removed: the next entry begins it again
                handle.close()
                self._handle = None

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            self._handle.close()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def read_record(folder: Path) -> list[Entry]:
    """Entries of a run in their order, without those about iterations that were done again.

    Raises:
        OSError: there is no record.
        ValueError: a line is no entry.
    """
    path = folder / FILE_NAME
    entries: list[Entry] = []
    data = read_bytes(path)
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        with taken_apart(f"{path}, line {number},", "an entry of a run's record"):
            entry = json.loads(line)
            if str(entry["kind"]) == "start":
                entries = list(_before(entries, int(entry["iteration"])))
            entries.append(entry)
    return entries


def _before(entries: Iterable[Entry], iteration: int) -> Iterable[Entry]:
    """Entries that are still true when the run begins again behind an iteration."""
    if iteration == 0:
        return ()
    return (entry for entry in entries if entry.get("iteration", 0) <= iteration)


class Warnings(logging.Handler):
    """Keeps warnings that the package logs, until somebody takes them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take one."""
        self.lines.append(record.getMessage())

    def taken(self) -> list[str]:
        """The lines so far, which are forgotten."""
        lines, self.lines = self.lines, []
        return lines
