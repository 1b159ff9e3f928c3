# SPDX-License-Identifier: Apache-2.0
"""What a published script leaves open in its launcher's words: a plan does without it.

A variable that is not set leaves an option without a value (``--nproc_per_node --nnodes 1`` where
torch was to count the devices), and ``your master node IP`` unquoted is several words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

COUNTS = ("--nnodes", "--nproc-per-node")
"""Options that say how many ranks there are."""


def filled(
    words: Sequence[str], takes_value: Callable[[str], bool]
) -> tuple[list[str], tuple[str, ...]]:
    """Return a launcher's command line that can be read, and the options that were left out.

    Args:
        words: of the launcher, its script and the script's.
        takes_value: of an option.

    >>> filled(["--nproc_per_node", "--node_rank", "0", "train.py"], lambda word: True)
    (['--node_rank', '0', 'train.py'], ('--nproc-per-node',))
    """
    result: list[str] = []
    missing: list[str] = []
    place = 0
    while place < len(words) and not _is_script(words, place):
        word = words[place]
        place += 1
        if not word.startswith("-"):
            continue  # one more word of the value before
        if not takes_value(word):
            result.append(word)
            if word in ("-m", "--module"):
                break
        elif word.startswith(("--ft-", "--ft_")):  # some take a value, nobody knows which
            result.append(word)
            if (
                place < len(words)
                and not words[place].startswith("-")
                and not _is_file(words[place])
            ):
                result.append(words[place])
                place += 1
        elif place == len(words) or words[place].startswith("-") or not words[place]:
            missing.append(_name(word))
            place += place < len(words) and not words[place]
        elif _is_file(words[place]):
            missing.append(_name(word))
        else:
            result += [word, words[place]]
            place += 1
    return [*result, *words[place:]], tuple(missing)


def _name(word: str) -> str:
    return "--" + word.lstrip("-").replace("_", "-")


def _is_file(word: str) -> bool:
    return word.endswith(".py")


def _is_script(words: Sequence[str], place: int) -> bool:
    """Whether a word that is no option names the script, and is not left over from a value."""
    word = words[place]
    if word.startswith("-"):
        return False
    return _is_file(word) or os.path.isfile(word) or not any(map(_is_file, words[place:]))
