# SPDX-License-Identifier: Apache-2.0
"""Who reads the output of a program, as ``| head`` does, may leave before its end."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 141
"""What a shell reports of a program that SIGPIPE has ended."""


def has_left() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # an error is told without being asked for
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # no file, as in a notebook
        return False


@contextmanager
def may_leave() -> Iterator[None]:
    """End without a word when the reader has seen enough, with the status of other programs."""
    try:
        yield
    except BrokenPipeError:
        if not has_left():  # of another pipe or connection
            raise
        raise SystemExit(STATUS) from None
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # what is left goes nowhere, and not into an error at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
