# SPDX-License-Identifier: Apache-2.0
"""A folder that one run at a time saves to.

The lock is the system's (``flock``): it goes when its holder does, however that ends, so no lock of
a dead process stays. File systems that several hosts share pass it on (NFS from version 3 on, with
its lock service; Lustre mounted with ``flock``). Where a file system has no such locks, the record
in the file decides: a holder on this host that is dead loses it, one on another host does not.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from mindspeed_ms.files.alive import is_alive

NAME = "run.lock"

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_MAX_RECORD_BYTES = 4096


class FolderLock:
    """The right to save to a folder.

    Args:
        folder: it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._handle: int | None = None

    def acquire(self) -> str | None:
        """Take the lock.

        Returns:
            Whose lock it was, in words, if its holder has ended without giving it up.

        Raises:
            ValueError: another run holds it; the message says which.
            OSError: the folder cannot be written.
        """
        while True:
            handle = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
            )
            try:
                is_mine = self._lock(handle)
                before = _read(handle)
                if is_mine:
                    self._handle = handle
                    _write(handle)
                    return _words(before) if before else None
            finally:
                if self._handle is None:
                    os.close(handle)

    def is_lost(self) -> bool:
        """Whether it is held, but its file or folder was removed or replaced meanwhile."""
        if self._handle is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._handle), os.stat(self._path))
        except OSError:  # it is gone, or something else is in its place
            return True

    def _lock(self, handle: int) -> bool:
        """Whether the file is locked; it is not if it was replaced meanwhile.

        Raises:
            ValueError: another run holds the lock.
        """
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return self._is_left(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise self._in_use(_read(handle)) from None
            raise
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self._path))
        except FileNotFoundError:  # its holder has just given it up
            return False

    def _is_left(self, handle: int) -> bool:
        """Without locks: whether the record names nobody who still runs."""
        record = _read(handle)
        if record and (record.get("host") != platform.node() or _is_alive(record.get("pid"))):
            raise self._in_use(record, f", or remove {self._path} if it has ended")
        return True

    def _in_use(self, record: dict[str, Any], further: str = "") -> ValueError:
        return ValueError(
            f"{self._path.parent} is in use by another run ({_words(record)}); end that one, or "
            f"give --save another folder{further}"
        )

    def release(self) -> None:
        """Give the lock up; a file that is another's by now stays."""
        is_lost = self.is_lost()
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            if not is_lost:
                self._path.unlink(missing_ok=True)
        except OSError:
            os.ftruncate(handle, 0)
        finally:
            os.close(handle)


def _read(handle: int) -> dict[str, Any]:
    """The record; empty where there is none, or none that can be read."""
    try:
        record = json.loads(os.pread(handle, _MAX_RECORD_BYTES, 0))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _write(handle: int) -> None:
    record = {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(record).encode(), 0)
    os.fsync(handle)


def _words(record: dict[str, Any]) -> str:
    host, pid, started = (str(record.get(key, "?"))[:64] for key in ("host", "pid", "started"))
    return f"process {pid} on host {host}, started {started}"


def _is_alive(pid: Any) -> bool:
    return type(pid) is int and pid > 0 and is_alive(pid)
