# SPDX-License-Identifier: Apache-2.0
"""What files say that programs wrote and anything may have happened to since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DAMAGE = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    StopIteration,
)


@contextmanager
def taken_apart(path: Path | str, what: str) -> Iterator[None]:
    """In the block a file's content is looked through; what is missing or of another kind is named.

    Args:
        path: the file.
        what: it should be, as in "the record of a run".

    Raises:
        ValueError: the content is something else; a plain ``ValueError`` of the block is kept.
    """
    try:
        yield
    except _DAMAGE as error:
        if type(error) is ValueError and str(path) in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        kind = type(error).__name__
        raise ValueError(
            f"{path} is damaged, or not {what} ({kind}: {reason}); name another, or make it anew"
        ) from None
