# SPDX-License-Identifier: Apache-2.0
"""Large files, written once from the start to the end.

The disk begins to write while the file still grows: what a plain copy leaves to the last call,
which must wait for all of it, is nearly done when that call comes.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.files.crc import crc32
from mindspeed_ms.files.whole import name_it

AHEAD_BYTES = 8 << 20
"""Written at a time; then the disk is told to begin with it."""

_BESIDE_FROM = 1 << 20
"""From so many bytes on the checksum is computed in another thread."""

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and checksum of a written file."""

    num_bytes: int
    crc32: int


@functools.cache
def _of_linux(name: str, *types: Any) -> Any | None:
    """A function of the C library; None on systems that have no such function."""
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes, function.restype = types, ctypes.c_int
    return function


def _reserve(handle: int, path: Path, num_bytes: int) -> None:
    """Take room for a file at once: laid out in one piece, and a full disk shows in time.

    Raises:
        OSError: there is not so much room.
    """
    long = ctypes.c_int64
    allocate = _of_linux("fallocate64", ctypes.c_int, ctypes.c_int, long, long)
    if allocate is None or num_bytes < AHEAD_BYTES:
        return
    # Not posix_fallocate: where a file system cannot do it, that writes zeros instead.
    if allocate(handle, _KEEP_SIZE, 0, num_bytes) and ctypes.get_errno() in _NO_SPACE:
        number = ctypes.get_errno()
        need = f"{os.strerror(number)}; {num_bytes / 1e6:.0f} MB are needed for it"
        raise OSError(number, need, str(path))


def _start_writing(handle: int, first: int, count: int) -> None:
    """Tell the disk to write a part of a file now; errors show when the file is closed."""
    long = ctypes.c_int64
    start = _of_linux("sync_file_range", ctypes.c_int, long, long, ctypes.c_uint)
    if start is not None:
        start(handle, first, count, _START_WRITING)


def create(path: Path) -> int:
    """Make a file that was not there; return its handle.

    What lies under the name, of a run that was killed, goes first. A link somebody has put there
    is removed, not followed: what it points to stays as it is.

    Raises:
        OSError: it cannot be made, or a folder has its name.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o644)


class NewFile:
    """A file that knows its size and the CRC-32 of what was written.

    Args:
        path: the file.
        expected_bytes: about how long it will be; 0: unknown.
        with_crc: compute the CRC-32; else it stays 0.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, path: Path, expected_bytes: int = 0, with_crc: bool = True) -> None:
        self._with_crc, self._expected, self._path = with_crc, expected_bytes, path
        self._handle = create(path)
        self.num_bytes = self.crc32 = 0
        self._given = 0
        # One sums up what is being written, one waits until the disk takes more.
        self._beside = ThreadPoolExecutor(2, thread_name_prefix="new-file")
        try:
            _reserve(self._handle, path, expected_bytes)
        except OSError:
            self.abandon()
            raise

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; they may change afterwards."""
        view = memoryview(data)
        if not self._with_crc:
            self._append(view)
        elif len(view) < _BESIDE_FROM:
            self.crc32 = crc32(view, self.crc32)
            self._append(view)
        else:
            summed = self._beside.submit(crc32, view, self.crc32)
            self._append(view)
            self.crc32 = summed.result()

    def _append(self, view: memoryview) -> None:
        while view:
            try:
                count = os.write(self._handle, view[:AHEAD_BYTES])
            except OSError as error:
                name_it(error, self._path)
                raise
            self.num_bytes += count
            view = view[count:]
            if self.num_bytes - self._given >= 2 * AHEAD_BYTES:
                self._beside.submit(_start_writing, self._handle, self._given, AHEAD_BYTES)
                self._given += AHEAD_BYTES

    def write_array(self, array: np.ndarray) -> None:
        """Append the memory of a contiguous array."""
        if array.size:
            self.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def patch(self, offset: int, data: bytes) -> None:
        """Change bytes that were written, which the checksum does not follow."""
        os.pwrite(self._handle, data, offset)

    def take_crc(self) -> int:
        """The CRC-32 of what was written since the last call, or the start."""
        value, self.crc32 = self.crc32, 0
        return value

    def close(self) -> FileRecord:
        """Bring everything to the disk and close.

        Raises:
            OSError: the disk is full or failing.
        """
        try:
            self._beside.shutdown()
            if self._expected > self.num_bytes:
                os.ftruncate(self._handle, self.num_bytes)  # gives back what was reserved
            os.fsync(self._handle)
        except OSError as error:
            name_it(error, self._path)
            self.abandon()
            raise
        os.close(self._handle)
        return FileRecord(self.num_bytes, self.crc32)

    def abandon(self) -> None:
        """Close after a failure, and remove what was written."""
        self._beside.shutdown(cancel_futures=True)
        with suppress(OSError):  # the first failure is the one to tell
            os.close(self._handle)
        with suppress(OSError):
            os.unlink(self._path)
