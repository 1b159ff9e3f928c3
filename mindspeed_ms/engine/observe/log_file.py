# SPDX-License-Identifier: Apache-2.0
"""One line per iteration, as CSV or JSON lines, for readers without further programs."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from mindspeed_ms.files.content import taken_apart
from mindspeed_ms.files.regular_file import read_bytes
from mindspeed_ms.files.whole import write_text

_FLUSH_SECONDS = 1.0
Row = dict[str, float | int | bool | None]


class LogFile:
    """A file of rows that begin with ``iteration``.

    Args:
        path: the file; its name ends in ``.csv`` or ``.jsonl``.
        after: rows of later iterations, from an earlier part of the run, are taken out; a file
            of a run that begins is begun anew.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, after: int) -> None:
        self._path = path
        self._is_csv = path.suffix == ".csv"
        self._columns: list[str] = []
        self._flushed = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = _read_rows(path, self._is_csv) if after and path.is_file() else []
        kept = [row for row in rows if int(row["iteration"]) <= after]
        self._rewrite(kept)
        self._handle: TextIO = path.open("a", encoding="utf-8", newline="")

    def write(self, row: Row) -> None:
        """Append a row; an unknown column of a CSV file is added to all rows."""
        if not self._is_csv:
            self._handle.write(json.dumps(row) + "\n")
        else:
            if not set(row) <= set(self._columns):
                self._widen(row)
            self._handle.write(_csv_line(row.get(name) for name in self._columns))

    def _widen(self, row: Mapping[str, object]) -> None:
        self._handle.close()
        rows = _read_rows(self._path, is_csv=True)
        self._columns += [name for name in row if name not in self._columns]
        self._rewrite(rows)
        self._handle = self._path.open("a", encoding="utf-8", newline="")

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        if self._is_csv:
            for row in rows:
                self._columns += [name for name in row if name not in self._columns]
            lines = [_csv_line(self._columns)] if self._columns else []
            lines += [_csv_line(row.get(name) for name in self._columns) for row in rows]
        else:
            lines = [json.dumps(row) + "\n" for row in rows]
        write_text(self._path, "".join(lines))

    def flush(self) -> None:
        """Hand all rows to the system, unless that was done just now."""
        now = time.monotonic()
        if now - self._flushed > _FLUSH_SECONDS:
            self._handle.flush()
            os.stat(self._path)  # what goes to a file that was removed is lost
            self._flushed = now

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _csv_line(values: object) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)  # type: ignore[arg-type]
    return text.getvalue()


def _read_rows(path: Path, is_csv: bool) -> list[dict[str, str]]:
    """Rows of a file; a last line that a killed run has left incomplete is no row."""
    with taken_apart(path, "a table that a run has written"):
        text = read_bytes(path).decode("utf-8")
        complete = text[: text.rfind("\n") + 1]
        if is_csv:
            return list(csv.DictReader(io.StringIO(complete)))
        return [dict(json.loads(line)) for line in complete.splitlines()]
