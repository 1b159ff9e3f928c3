# SPDX-License-Identifier: Apache-2.0
"""Files that somebody else wrote: only regular ones are opened, and texts have a limit.

A pipe under a file's name would block for ever, a device never ends, and brackets that open a
million times end an interpreter; each is one line instead.
"""

from __future__ import annotations

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_TEXT_BYTES = 64 << 20
"""Of a description; indices of checkpoints may be larger and say so where they are read."""


FETCHED_BYTES = 64 << 20
"""Of a file that are asked for at a time."""

_WORTH_ASKING = 1 << 20


def fetch(handle: int, offset: int, num_bytes: int) -> None:
    """Have the disk bring bytes of a file that will be read now, all at once.

    Else it brings a tenth of a megabyte, waits until that is read, and brings the next.
    """
    if num_bytes >= _WORTH_ASKING and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, offset, num_bytes, os.POSIX_FADV_WILLNEED)


def real_path(path: Path | str) -> Path:
    """An absolute name without links; of links in a circle the name itself, which cannot be opened.

    ``Path.resolve`` raises what is no ``OSError`` for a circle.
    """
    return Path(os.path.realpath(path))


def is_regular(path: Path | str) -> bool:
    """Whether there is a file that can be read to an end, under this name or behind a link."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def require_regular(path: Path | str) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a folder, pipe, device or socket has its name.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is a {_kind(found.st_mode)}, not a file; give a regular file")
    return found.st_size


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "folder",
        stat.S_IFIFO: "pipe",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFSOCK: "socket",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def open_regular(path: Path | str) -> BufferedReader:
    """A file, for reading.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: see ``require_regular``.
    """
    require_regular(path)
    # What is put in its place meanwhile must not block either.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"{path} is no regular file any more; give a regular file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: Path | str) -> bytes:
    """What a file holds, as long as it is now.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: see ``require_regular``.
    """
    with open_regular(path) as file:
        return file.read(_size(file))  # not to the end: it may grow


def _size(file: BufferedReader) -> int:
    return os.fstat(file.fileno()).st_size


def read_text(path: Path | str, limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a file in UTF-8.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is no regular file, too large, or no text.
    """
    with open_regular(path) as file:
        size = _size(file)
        if size > limit:
            raise ValueError(f"{path} has {size} bytes, at most {limit} are read; it is damaged")
        data = file.read(size)  # not to the end: room is taken for what is asked
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error}); copy it again") from None


def read_json(path: Path | str, limit: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        OSError: there is no file, or it cannot be read.
        ValueError: see ``read_text``; or it is not JSON, or holds no object.
    """
    return json_object(read_text(path, limit), str(path))


def json_object(text: str | bytes, source: str) -> dict[str, Any]:
    """The object that a JSON text holds.

    Raises:
        ValueError: it is not JSON, holds something else, or names a key twice.
    """
    try:
        content = json.loads(text, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{source} holds a JSON {type(content).__name__}; an object is needed")
    return content


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:60]!r} is there twice")
    return content
