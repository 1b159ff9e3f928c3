# SPDX-License-Identifier: Apache-2.0
"""How an entry point ends when the user made a mistake: one line, non-zero status.

``told`` says which errors are the user's.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from mindspeed_ms.backend import comm, failure
from mindspeed_ms.engine.errors import RunFailure
from mindspeed_ms.training import reader
from mindspeed_ms.training.one_line import one_line
from mindspeed_ms.training.told import TOLD, frames_of, told_line

logger = logging.getLogger(__name__)

USER_ERROR_STATUS = 2
FAILURE_STATUS = 1
"""Of a run that had begun: its loss is no number, or the disk is full."""


@contextmanager
def user_errors(during_training: bool = False) -> Iterator[None]:
    """Turn what the user did wrong into one line on standard error and an exit status.

    Of equal messages of several ranks one is printed. The traceback appears at logging level 10
    (``--logging-level 10``).

    Args:
        during_training: the block trains. Before, while arguments and files are read, every
            ``ValueError`` is taken for the user's, with its place if it is not our own message.
    """
    with reader.may_leave():
        try:
            yield
        except TOLD as error:
            frames = list(frames_of(error.__traceback__))[1:]  # without this function's own
            line = told_line(error, frames, is_reading=not during_training)
            if line is None:
                raise
            raise SystemExit(_end(error, line)) from None
        except KeyboardInterrupt:
            tell_user_errors()
            raise


def tell_user_errors() -> None:
    """Let exceptions that nobody catches end like ``user_errors``, in scripts.

    Not in notebooks and interactive sessions: there they must arrive with all they have.
    """
    if not hasattr(sys, "ps1") and not isinstance(sys.excepthook, _TellingHook):
        sys.excepthook = _TellingHook()


class _TellingHook:
    """An exception hook that tells the user's mistakes in one line."""

    def __init__(self) -> None:
        self._previous = sys.excepthook

    def __call__(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            # The interpreter then ends itself by the signal, so that a shell's loop ends, too.
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # another interrupt ends it at once
            logger.debug("traceback of the interruption", exc_info=error)
            say("interrupted from the keyboard (SIGINT); what was saved before is complete")
            return
        frames = list(frames_of(trace))
        line = told_line(error, frames) if len(frames) > 1 else None  # not the script's own
        if line is None:
            self._previous(kind, error, trace)
        else:
            raise SystemExit(_end(error, line))


def say(message: str, start: str = "") -> None:
    """Print an error line on standard error, on one of the ranks that have the same.

    Args:
        message: for the user.
        start: what comes before ``error:``.
    """
    if not failure.is_told_elsewhere(message):
        rank = f"[rank {comm.get_rank()}] " if comm.get_world_size() > 1 else ""
        sys.stderr.write(one_line(f"{rank}{start}error: {message}") + "\n")
        sys.stderr.flush()


def _end(error: BaseException, line: str) -> int:
    logger.debug("traceback of the error below", exc_info=error)
    say(line)
    return FAILURE_STATUS if isinstance(error, RunFailure) else USER_ERROR_STATUS
