# SPDX-License-Identifier: Apache-2.0
"""What a user is told of an error: its own line, or nothing, and then it keeps its traceback.

A message is for the user when this package has written it, in a ``raise`` of its own, or when it is
about a file. What Python, NumPy or MindSpore say of themselves, and what code of the user's raises,
is shown with its traceback: somebody has to look into code then.
"""

from __future__ import annotations

import dis
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType

import mindspeed_ms

Place = tuple[FrameType, int]
"""A frame, and the instruction it is at."""

TOLD = (ValueError, RuntimeError, NotImplementedError, OSError)
"""Kinds of errors that may be for the user."""

_PACKAGE = Path(mindspeed_ms.__file__).parent
_LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))


def told_line(
    error: BaseException,
    frames: Sequence[Place],
    is_reading: bool = False,
    program: str | None = None,
) -> str | None:
    """What a user is told of an error; None if it needs a traceback.

    Args:
        error: as it was caught.
        frames: the way from the catcher to where it began.
        is_reading: it came while arguments and files were read.
        program: file of a tool, which counts as part of this package.
    """
    if not isinstance(error, TOLD) or isinstance(error, BrokenPipeError) or not frames:
        return None
    message = _message(error)
    last = frames[-1]
    ours = [pair for pair in frames if _is_in(pair[0], _PACKAGE) or _file(pair[0]) == program]
    # Raised by the very code that catches, or by this package.
    if _raises(*last) and (len(frames) == 1 or last in ours):
        return message
    is_known = last in ours or _is_in(last[0], *_LIBRARIES) or _file(last[0]).startswith("<frozen ")
    if not ours or not is_known:
        return None
    if isinstance(error, OSError):
        return message
    if is_reading and isinstance(error, ValueError):
        frame = ours[-1][0]
        path = Path(_file(frame))
        place = path.relative_to(_PACKAGE.parent) if _is_in(frame, _PACKAGE) else path.name
        return f"{message} ({type(error).__name__} in {place}, {frame.f_code.co_name})"
    return None


def frames_of(trace: TracebackType | None) -> Iterator[Place]:
    """The way from the catcher to where the error began."""
    while trace is not None:
        yield trace.tb_frame, trace.tb_lasti
        trace = trace.tb_next


def _message(error: BaseException) -> str:
    """Its text; that of the system about a file begins with the file."""
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str):
        names = [name for name in (error.filename, error.filename2) if name is not None]
        return f"{' -> '.join(map(str, names))}: {error.strerror}"
    return str(error)


def _file(frame: FrameType) -> str:
    return frame.f_code.co_filename


def _is_in(frame: FrameType, *folders: Path) -> bool:
    path = Path(_file(frame))
    return any(folder in path.parents for folder in folders)


def _raises(frame: FrameType, instruction: int) -> bool:
    """Whether a frame is at a ``raise``: what it says then is its own message."""
    return frame.f_code.co_code[instruction] == dis.opmap["RAISE_VARARGS"]
