# SPDX-License-Identifier: Apache-2.0
"""What a rank writes to its standard output, through ``logging``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from mindspeed_ms.backend import bars, comm

_PACKAGE = logging.getLogger("mindspeed_ms")
_LINES = logging.getLogger("mindspeed_ms.lines")


class _Output(logging.StreamHandler):
    """Our own handler, told from those that a user has added.

    It writes to what is standard output at the moment: notebooks and tests exchange that.
    """

    def __init__(self, form: str) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter(form))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, above the progress bars if there are some."""
        if not bars.write_above(self.format(record)):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Go on without a reader, as after ``| head``, instead of a traceback per line."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            super().handleError(record)

    @property
    def stream(self) -> TextIO:
        """Where lines go."""
        return sys.stdout


@contextmanager
def attached(level: int | None = None, *listeners: logging.Handler) -> Iterator[None]:
    """``set_up_output`` for a block; afterwards the loggers are as they were before.

    Args:
        level: least important records that are shown; None: informative ones.
        listeners: further handlers of the package's records.
    """
    loggers = (_PACKAGE, _LINES)
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    set_up_output(level)
    _PACKAGE.handlers = [*_PACKAGE.handlers, *listeners]
    try:
        yield
    finally:
        for logger, (old_level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(old_level)
            logger.propagate = propagate
            logger.handlers = handlers


def set_up_output(level: int | None = None) -> None:
    """Send the package's log and the report lines to standard output (idempotent).

    Report lines stand alone, as tools expect them; everything else carries its rank. Handlers that
    the user has added stay.
    """
    _PACKAGE.setLevel(logging.INFO if level is None else level)
    _PACKAGE.propagate = False
    _write_to_output(_PACKAGE, f"[rank {comm.get_rank()}] %(levelname)s: %(message)s")
    _LINES.setLevel(logging.INFO)
    _LINES.propagate = False
    _write_to_output(_LINES, "%(message)s")


def _write_to_output(logger: logging.Logger, form: str) -> None:
    others = [one for one in logger.handlers if not isinstance(one, _Output)]
    logger.handlers = [*others, _Output(form)]


def print_rank_0(line: str) -> None:
    """A report line from the first rank only."""
    if comm.get_rank() == 0:
        _LINES.info(line)


def print_rank_last(line: str) -> None:
    """A report line from the last rank only, where Megatron prints losses."""
    if comm.get_rank() == comm.get_world_size() - 1:
        _LINES.info(line)


def print_every_rank(line: str) -> None:
    """A report line from this rank."""
    _LINES.info(line)
