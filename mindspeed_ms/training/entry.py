# SPDX-License-Identifier: Apache-2.0
"""How an entry point ends when the user made a mistake: one line, non-zero status.

A message is for the user when this package has written it, in a ``raise`` of its own, or when it is
about a file. What Python, NumPy or MindSpore say of themselves, and what code of the user's raises,
is shown with its traceback: somebody has to look into code then.
"""

from __future__ import annotations

import dis
import logging
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import mindspeed_ms
from mindspeed_ms.backend import comm, failure
from mindspeed_ms.engine.errors import RunFailure
from mindspeed_ms.training.one_line import one_line

logger = logging.getLogger(__name__)

USER_ERROR_STATUS = 2
FAILURE_STATUS = 1
"""Of a run that had begun: its loss is no number, or the disk is full."""

_PACKAGE = Path(mindspeed_ms.__file__).parent
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
Place = tuple[FrameType, int]
"""A frame, and the instruction it is at."""

_TOLD = (ValueError, RuntimeError, NotImplementedError, OSError)


@contextmanager
def user_errors(during_training: bool = False) -> Iterator[None]:
    """Turn what the user did wrong into one line on standard error and an exit status.

    Of equal messages of several ranks one is printed. The traceback appears at logging level 10
    (``--logging-level 10``).

    Args:
        during_training: the block trains. Before, while arguments and files are read, every
            ``ValueError`` is taken for the user's, with its place if it is not our own message.
    """
    try:
        yield
    except _TOLD as error:
        frames = list(_frames(error.__traceback__))[1:]  # without this function's own
        line = told_line(error, frames, is_reading=not during_training)
        if line is None:
            raise
        raise SystemExit(_end(error, line)) from None


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
        frames = list(_frames(trace))
        line = told_line(error, frames) if len(frames) > 1 else None  # not the script's own
        if line is None:
            self._previous(kind, error, trace)
        else:
            raise SystemExit(_end(error, line))


def told_line(
    error: BaseException, frames: Sequence[Place], is_reading: bool = False
) -> str | None:
    """What a user is told of an error; None if it needs a traceback.

    Args:
        error: as it was caught.
        frames: the way from the catcher to where it began.
        is_reading: it came while arguments and files were read.
    """
    if not isinstance(error, _TOLD) or not frames:
        return None
    message = str(error)
    last, ours = frames[-1], [pair for pair in frames if _is_in(pair[0], _PACKAGE)]
    # Raised by the very code that catches (a tool), or by this package.
    if _raises(*last) and (len(frames) == 1 or _is_in(last[0], _PACKAGE)):
        return message
    is_users = not _is_in(last[0], _PACKAGE, *_LIBRARIES)
    if not ours or is_users:
        return None
    if isinstance(error, OSError):
        return message
    if is_reading and isinstance(error, ValueError):
        code = ours[-1][0].f_code
        place = Path(code.co_filename).relative_to(_PACKAGE.parent)
        return f"{message} ({type(error).__name__} in {place}, {code.co_name})"
    return None


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


def _frames(trace: TracebackType | None) -> Iterator[Place]:
    """The way from the catcher to where the error began."""
    while trace is not None:
        yield trace.tb_frame, trace.tb_lasti
        trace = trace.tb_next


def _is_in(frame: FrameType, *folders: Path) -> bool:
    path = Path(frame.f_code.co_filename)
    return any(folder in path.parents for folder in folders)


def _raises(frame: FrameType, instruction: int) -> bool:
    """Whether a frame is at a ``raise``: what it says then is its own message."""
    return frame.f_code.co_code[instruction] == dis.opmap["RAISE_VARARGS"]
