# SPDX-License-Identifier: Apache-2.0
"""Blends whose corpora are read in parts, one blend a split: BigScience's flags of data.

``"NAME: WEIGHT START:END PATH, WEIGHT START:END PATH"``; START and END are shares of the corpus.

Source: Megatron-DeepSpeed ``megatron/arguments.py`` of BigScience (behaviour).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mindspeed_ms.files.regular_file import read_text
from mindspeed_ms.training.flags.row import UNSET, Field, Flag, in_group, value, values

_FORM = '"NAME: WEIGHT START:END PATH, WEIGHT START:END PATH"'


def blend_of_groups(groups: Sequence[str]) -> Any:
    """Words of a blend: weight and prefix in turn, with the part that is read.

    Raises:
        ValueError: groups of another form, or several.

    >>> blend_of_groups(["TRAIN: 1 0:0.9 wiki, 0.3 0:1 books"])
    ['1', 'wiki@0.0:0.9', '0.3', 'books']
    """
    if len(groups) != 1:
        raise ValueError(
            f"{len(groups)} groups of data are given for a split; give one, {_FORM}: several "
            "validation sets are those of --valid-data-path with --multiple-validation-sets"
        )
    words: list[str] = []
    for part in groups[0].partition(":")[2].split(","):
        pieces = part.split()
        start, end = _share(pieces[1]) if len(pieces) == 3 else (1.0, 0.0)
        if not 0 <= start < end <= 1:
            raise ValueError(f"{part.strip()!r} of {groups[0]!r} is no part of a blend: {_FORM}")
        is_whole = (start, end) == (0.0, 1.0)
        words += [pieces[0], pieces[2] if is_whole else f"{pieces[2]}@{start}:{end}"]
    return words


def _share(text: str) -> tuple[float, float]:
    start, _, end = text.partition(":")
    try:
        return float(start), float(end)
    except ValueError:
        return 1.0, 0.0


def _of_file(path: str) -> Any:
    """The groups are in a file, in quotes or without."""
    try:
        text = read_text(path).strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); it holds {_FORM}") from None
    return blend_of_groups([one for one in text.split('"') if one.strip()])


def _untold(*_: Any) -> Any:
    """Read back, the field speaks through the flag of its own name."""
    return UNSET


def _rows(split: str) -> list[Flag]:
    field = f"dataset_config.{split}_data_path"
    clears = ("mock_data", "data_path")
    return [
        values(
            f"--{split}-weighted-split-paths",
            str,
            Field(field, means=blend_of_groups, back=_untold, clears=clears),
            "some",
            small=None,
            help=f"--{split}-data-path with parts of corpora: {_FORM}.",
        ),
        value(
            f"--{split}-weighted-split-paths-path",
            str,
            Field(field, means=_of_file, back=_untold, clears=clears),
            small=None,
            help=f"File that holds the value of --{split}-weighted-split-paths.",
        ),
    ]


ROWS: tuple[Flag, ...] = in_group(
    "names of forks", [row for split in ("train", "valid", "test") for row in _rows(split)]
)
"""Every one of them."""
