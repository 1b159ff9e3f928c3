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


def is_text(value: object) -> bool:
    r"""Whether a value is a text that can be written; JSON may spell half a character.

    >>> is_text("é"), is_text("\ud800"), is_text(5)
    (True, False, False)
    """
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


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
