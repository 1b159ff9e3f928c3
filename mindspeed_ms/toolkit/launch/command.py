# SPDX-License-Identifier: Apache-2.0
"""How the small commands of this room end when the user made a mistake: one line, status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

USER_ERROR_STATUS = 2


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Write the message without the usage before it."""
        sys.stderr.write(f"{self.prog}: error: {message}\n")
        raise SystemExit(USER_ERROR_STATUS)


@contextmanager
def user_errors(name: str) -> Iterator[None]:
    """Turn errors about input into one line on standard error.

    Unlike ``training.entry.user_errors`` this starts no MindSpore.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{name}: error: {' '.join(str(error).split())}\n")
        raise SystemExit(USER_ERROR_STATUS) from None
