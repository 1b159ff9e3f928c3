# SPDX-License-Identifier: Apache-2.0
"""Progress bars on a terminal, drawn by ``tqdm``; nothing at all elsewhere.

A bar is shown by the process whose standard output is a terminal and that speaks for its job: rank
0, or the process that runs alone. Lines of the log go above the bars.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Open:
    """The bars that are drawn now."""

    def __init__(self) -> None:
        self.count = 0
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
            self._drawn.close()
        self._drawn = None

    def tell(self, **facts: str) -> None:
        """Show facts behind the bar."""
        if self._drawn is not None:
            self._drawn.set_postfix(facts, refresh=False)


SILENT = Bar()


def is_possible() -> bool:
    """Whether this process can draw bars."""
    return (
        not _open.is_hidden and sys.stdout.isatty() and importlib.util.find_spec("tqdm") is not None
    )


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
    if not is_shown or not is_possible():
        yield SILENT
        return
    is_bytes = unit == "B"
    drawn = importlib.import_module("tqdm").tqdm(
        desc=what,
        total=total,
        initial=done,
        unit=unit if is_bytes else f" {unit}",
        unit_scale=is_bytes,
        leave=is_kept,
        file=sys.stdout,
        dynamic_ncols=True,
    )
    _open.count += 1
    shown = Bar(drawn)
    try:
        yield shown
    finally:
        _open.count -= 1
        shown.close()


def write_above(line: str) -> bool:
    """Write a line above the bars; False where none is drawn, and nothing was written."""
    if not _open.count:
        return False
    importlib.import_module("tqdm").tqdm.write(line, file=sys.stdout)
    return True
