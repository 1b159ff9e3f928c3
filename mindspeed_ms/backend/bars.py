# SPDX-License-Identifier: Apache-2.0
"""Progress bars on a terminal, drawn by ``tqdm``; nothing at all elsewhere.

A bar is shown by the process whose standard output is a terminal and that speaks for its job: rank
0, or the process that runs alone. Lines of the log go above the bars.

Under a launcher that keeps standard output in files, ``MINDSPEED_MS_TERMINAL`` names the terminal
of who started the job (``pretrain_gpt.sh`` does). One bar at a time is drawn there; lines that the
launcher prints meanwhile write over it, and it comes again below them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from mindspeed_ms.backend import env

_FOREIGN_COLUMNS = 72
"""Of a bar on the launcher's terminal: a line of the log covers it."""


class _Elsewhere:
    """The launcher's terminal; whatever is written leaves the cursor where a line begins.

    Args:
        handle: the terminal.
    """

    def __init__(self, handle: TextIO) -> None:
        self._handle = handle

    def write(self, text: str) -> None:
        """Write, and go back to the beginning of the line."""
        self._handle.write(text if text.endswith(("\n", "\r")) else f"{text}\r")

    def flush(self) -> None:
        """Show it."""
        self._handle.flush()


class _Open:
    """The bars that are drawn now."""

    def __init__(self) -> None:
        self.count = 0
        self.is_elsewhere = False
        self.is_hidden = False


_open = _Open()


class Bar:
    """A bar, or the silence in its place.

    Args:
        drawn: of ``tqdm``; None: nothing is drawn.
    """

    def __init__(self, drawn: Any = None) -> None:
        self._drawn = drawn

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        if self._drawn is not None:
            self._drawn.update(count)

    def close(self) -> None:
        """Draw it no more."""
        if self._drawn is not None:
            self._drawn.refresh()  # the last step may have come too soon after the one before
            self._drawn.close()
        self._drawn = None

    def tell(self, **facts: str) -> None:
        """Show facts behind the bar."""
        if self._drawn is not None:
            self._drawn.set_postfix(facts, refresh=False)


SILENT = Bar()


@contextmanager
def hidden(is_hidden: bool = True) -> Iterator[None]:
    """Context in which no bar is drawn."""
    before, _open.is_hidden = _open.is_hidden, is_hidden or _open.is_hidden
    try:
        yield
    finally:
        _open.is_hidden = before


@contextmanager
def bar(
    what: str,
    total: int,
    unit: str = "",
    *,
    done: int = 0,
    is_shown: bool = True,
    is_kept: bool = False,
) -> Iterator[Bar]:
    """A bar for the time of a block.

    Args:
        what: is going on.
        total: units there are to do.
        unit: name of one, ``B`` for bytes.
        done: units that were done before.
        is_shown: False: this process does not speak for the job.
        is_kept: the bar stays on the screen when it is over.
    """
    if not is_shown or _open.is_hidden or importlib.util.find_spec("tqdm") is None:
        yield SILENT
        return
    if not sys.stdout.isatty():
        with _bar_elsewhere(what, total, unit, done) as shown:
            yield shown
        return
    drawn = _draw(what, total, unit, done, leave=is_kept, file=sys.stdout, dynamic_ncols=True)
    _open.count += 1
    shown = Bar(drawn)
    try:
        yield shown
    finally:
        _open.count -= 1
        shown.close()


def _draw(what: str, total: int, unit: str, done: int, **how: Any) -> Any:
    is_bytes = unit == "B"
    return importlib.import_module("tqdm").tqdm(
        desc=what,
        total=total,
        initial=done,
        unit=unit if is_bytes else f" {unit}",
        unit_scale=is_bytes,
        **how,
    )


@contextmanager
def _bar_elsewhere(what: str, total: int, unit: str, done: int) -> Iterator[Bar]:
    """A bar on the terminal of who started the job, if there is one and none is drawn on it."""
    name = env.get("MINDSPEED_MS_TERMINAL")
    handle = None if name is None or _open.is_elsewhere else _terminal(name)
    if handle is None:
        yield SILENT
        return
    with handle:
        drawn = _draw(
            *(what, total, unit, done),
            leave=False,
            file=_Elsewhere(handle),
            ncols=_FOREIGN_COLUMNS,
        )
        _open.is_elsewhere = True
        shown = Bar(drawn)
        try:
            yield shown
        finally:
            _open.is_elsewhere = False
            shown.close()


def _terminal(name: str) -> TextIO | None:
    """A terminal by its name; None if that is something else, or gone."""
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    if os.isatty(descriptor):
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "w", encoding="utf-8")
    os.close(descriptor)
    return None


def write_above(line: str) -> bool:
    """Write a line above the bars; False where none is drawn, and nothing was written."""
    if not _open.count:
        return False
    importlib.import_module("tqdm").tqdm.write(line, file=sys.stdout)
    return True
