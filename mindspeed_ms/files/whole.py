# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, whatever interrupts who writes them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path | str, text: str) -> None:
    """Write a text whole or not at all; its folder is made.

    Raises:
        OSError: the folder or the file cannot be written.
    """
    with appears_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def appears_whole(path: Path | str) -> Iterator[Path]:
    """Write under another name in the same folder, which becomes ``path`` when the block is over.

    When the block fails, nothing is left of it, and an older file of the name stays.

    Args:
        path: the file; its folder is made.

    Raises:
        OSError: the folder or the file cannot be written.
        ValueError: the path has no name.
    """
    path = Path(path)
    if not path.name:
        raise ValueError(f"{path} is no name of a file; give one")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        if error.filename == str(unfinished):  # the name that was asked for is what is told
            error.filename = str(path)
        raise
    finally:
        unfinished.unlink(missing_ok=True)
