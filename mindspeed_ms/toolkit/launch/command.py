# SPDX-License-Identifier: Apache-2.0
"""How the small commands end when the user made a mistake: one line, status 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from mindspeed_ms.backend.plain_parser import PlainParser
from mindspeed_ms.files.whole import remove_unfinished
from mindspeed_ms.toolkit.launch import ended
from mindspeed_ms.training import reader
from mindspeed_ms.training.one_line import one_line
from mindspeed_ms.training.told import TOLD, frames_of, told_line

USER_ERROR_STATUS = 2
Value = TypeVar("Value")


class Parser(PlainParser):
    """A parser whose errors are one line."""

    @classmethod
    def of(cls, doc: str | None, alone: str | None = None, **words: Any) -> Parser:
        """A parser that describes itself by the text at the head of a module.

        Args:
            doc: its first line says what the program does; what follows comes below the flags.
            alone: name of the program where it is no sub-command of ``mindspeed-ms``.
            words: of ``ArgumentParser``.
        """
        if alone is not None and not sys.argv[0].startswith("mindspeed-ms "):
            words["prog"] = alone
        first, _, rest = (doc or "").partition("\n")
        raw = argparse.RawDescriptionHelpFormatter
        told = {"description": first, "epilog": rest.strip("\n"), "formatter_class": raw}
        return cls(**{**told, "allow_abbrev": False, **words})

    def error(self, message: str) -> NoReturn:
        """Write the message without the usage before it."""
        sys.stderr.write(f"{one_line(f'{self.prog}: error: {message}')}\n")
        raise SystemExit(USER_ERROR_STATUS)


def telling(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """A type of ``argparse`` whose ``ValueError`` says itself what is wrong."""

    def told(text: str) -> Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return told


@contextmanager
def user_errors(name: str | None = None) -> Iterator[None]:
    """Turn errors about input, and signals that end, into one line on standard error.

    Unlike ``training.entry.user_errors`` this starts no MindSpore; which errors are the user's is
    the same.

    Args:
        name: of the program; None: as it was called.
    """
    program = name or os.path.basename(sys.argv[0])

    def say(line: str) -> None:
        sys.stderr.write(f"{one_line(f'{program}: error: {line}')}\n")

    with reader.may_leave(), ended.by_signals(say, remove_unfinished):
        try:
            yield
        except TOLD as error:
            if isinstance(error, BrokenPipeError):
                raise
            frames = list(frames_of(error.__traceback__))[1:]  # without this function's own
            own = frames[0][0].f_code.co_filename if frames else None
            line = told_line(error, frames, is_reading=True, program=own)
            if line is None:
                raise
            say(line)
            raise SystemExit(USER_ERROR_STATUS) from None
