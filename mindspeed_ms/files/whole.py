# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, whatever interrupts who writes them.

What is not finished has a name that tells which process writes it. Who is killed can remove
nothing; whoever next writes a file of that name on the same machine does so.
"""

from __future__ import annotations

import errno
import functools
import os
import platform
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from mindspeed_ms.files.alive import is_alive

_ON_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)

_given: set[Path] = set()
"""Names of what this process has not finished yet."""


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
    unfinished = unfinished_name(path)
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        name_it(error, path, unfinished)
        raise
    finally:
        unfinished.unlink(missing_ok=True)
        forget(unfinished)


def name_it(error: OSError, path: Path | str, unfinished: Path | None = None) -> None:
    """Let an error of writing say which file; the system does not, where the disk is full.

    Args:
        error: it is changed.
        path: the name that was asked for.
        unfinished: another one, that ``path`` stands for.
    """
    is_about_writing = error.filename is None and error.errno in _ON_WRITING
    if is_about_writing or (unfinished is not None and error.filename == str(unfinished)):
        error.filename = str(path)


@contextmanager
def unfinished_folder(folder: Path, purpose: str) -> Iterator[Path]:
    """A new folder in ``folder``, which is made, for what is not finished; it goes at the end."""
    between = unfinished_name(folder / purpose)
    between.mkdir(mode=0o700)
    try:
        yield between
    finally:
        shutil.rmtree(between, ignore_errors=True)
        forget(between)


def temporary_folder(purpose: str) -> AbstractContextManager[Path]:
    """A folder where the system has such ones; a killed process leaves it to its next of the kind.

    Args:
        purpose: what tells it from folders of other kinds.
    """
    return unfinished_folder(Path(tempfile.gettempdir()), f"mindspeed-ms-{purpose}")


def unfinished_name(path: Path) -> Path:
    """Another name in the folder of ``path``, which is made, for what is to become it.

    What processes of this machine that have ended left under such names is removed.

    Raises:
        OSError: the folder cannot be made.
        ValueError: the path has no name.
    """
    if not path.name:
        raise ValueError(f"{path} is no name of a file; give one")
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name}.{_machine()}."
    for entry in os.scandir(path.parent):
        owner = entry.name.removeprefix(start).partition(".")[0]
        if entry.name.startswith(start) and owner.isdigit() and not is_alive(int(owner)):
            _remove(Path(entry.path))
    name = path.with_name(f"{start}{os.getpid()}.{uuid.uuid4().hex[:12]}{path.suffix}")
    _given.add(name)
    return name


def forget(unfinished: Path) -> None:
    """Say that a name of ``unfinished_name`` is not in use any more."""
    _given.discard(unfinished)


def remove_unfinished() -> None:
    """Remove what this process has not finished, right before it ends."""
    for name in list(_given):
        if f".{_machine()}.{os.getpid()}." in name.name:  # not those of whom it was forked from
            _remove(name)


def _remove(path: Path) -> None:
    with suppress(OSError):  # another one has just done it, or it is not ours
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@functools.cache
def _machine() -> str:
    """What differs between machines, their starts, and containers: where a process id counts."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        known = f"{start.strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        known = platform.node()
    return f"{zlib.crc32(known.encode()):08x}"
