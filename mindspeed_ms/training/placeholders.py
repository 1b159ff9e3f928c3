# SPDX-License-Identifier: Apache-2.0
"""Values that a published script leaves to its reader, such as ``your model ckpt path``.

Unquoted, the shell hands them over as several words, and a variable that is not set as none. A
plan needs no file, so it takes the words for one value and does without the variable's flag; a run
is told what to do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mindspeed_ms.training.flags import BY_NAME, Field, Flag

_WORD = re.compile(r"[A-Za-z][\w'.-]*")
"""Prose, unlike a path."""


def _names_files(row: Flag) -> bool:
    """Whether a flag names files, folders or a tracker: what ``--scale-down`` does without, too."""
    takes_values = row.arity in ("one", "some", "many") and isinstance(row.state, Field)
    return takes_values and row.type is str and row.small is None


def gathered(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line in which every flag of one file has one, or is left out, with lines.

    >>> gathered(["--load", "your", "ckpt", "path", "--save", "--bf16"])[0]
    ['--load', 'your ckpt path', '--bf16']
    """
    result: list[str] = []
    lines: list[str] = []
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        row = BY_NAME.get(word)
        follows = words[place] if place < len(words) else None
        is_empty = follows is None or follows in BY_NAME
        if row is not None and is_empty and _names_files(row):
            lines.append(f"{word} has no value; a variable of the script may be empty")
            continue
        result.append(word)
        if row is None or row.arity != "one" or not _names_files(row):
            continue
        end = place
        while end < len(words) and _WORD.fullmatch(words[end]):
            end += 1
        if end - place > 1:
            text = " ".join(words[place:end])
            result.append(text)
            lines.append(f"{word} takes one value, but is given the words {text!r}")
            place = end
    return result, lines
