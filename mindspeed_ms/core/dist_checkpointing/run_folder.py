# SPDX-License-Identifier: Apache-2.0
"""The folder that a run saves to: found out at the start, not at the first checkpoint."""

from __future__ import annotations

import os
import platform
import secrets
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from mindspeed_ms.backend import comm
from mindspeed_ms.core.dist_checkpointing.shared_folders import PROBE, require_shared
from mindspeed_ms.files.regular_file import real_path
from mindspeed_ms.formats.containers.folder_lock import FolderLock

_PROBE_BYTES = 4096
"""Of a file that shows whether there is any room."""


_HELD: WeakValueDictionary[Path, RunFolder] = WeakValueDictionary()
"""What runs of this process hold; the next run of the same folder takes it over."""


class RunFolder:
    """A folder that is this run's alone, and that every rank can write to and sees the same.

    Args:
        root: made if it does not exist.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = FolderLock(root)

    def open(self) -> list[str]:
        """Take the folder.

        Returns:
            What is to be said of it, a line each.

        Raises:
            ValueError: it cannot be made or written, another run saves to it, or the hosts do not
                share it; the message names the rank and its host.

        Parallelism: collective over the world; the first rank holds the lock.
        """
        notes, problem = list[str](), ""
        if comm.get_rank() == 0:
            earlier = _HELD.pop(real_path(self._root), None)
            if earlier is not None:  # of this process, whose runs do not work at the same time
                earlier.close()
            try:
                self._root.mkdir(parents=True, exist_ok=True)
                before = self._lock.acquire()
                if before:
                    notes.append(
                        f"took over the lock of {self._root} from {before}, which has ended "
                        "without giving it up"
                    )
                for left in self._root.glob(f"{PROBE}*"):  # of a run that was killed meanwhile
                    left.unlink()
            except ValueError as error:
                problem = str(error)
            except OSError as error:
                problem = self._unwritable(error)
        if comm.get_world_size() > 1:
            notes, problem = comm.broadcast_object((notes, problem), 0)
        if not problem:
            problem = self._try_together()
        if problem:
            self.close()
            raise ValueError(problem)
        _HELD[real_path(self._root)] = self
        # At the end of the process, too: a trainer or a notebook closes its run nowhere else.
        finalize(self, self._lock.release)
        return notes

    def keep(self) -> str | None:
        """Take the folder again if somebody removed it; called by the first rank before a save.

        Returns:
            What is to be said of it.

        Raises:
            ValueError: another run saves to it now.
            OSError: it cannot be made.
        """
        if not self._lock.is_lost():
            return None
        self._lock.release()
        self._root.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        return (
            f"{self._root} was removed or replaced while this run saved to it; it is made again, "
            "and earlier checkpoints may be gone"
        )

    def _try_together(self) -> str:
        """Every rank writes a file of its own, where the first one has written."""
        try:
            require_shared(self._root)
        except ValueError as error:
            return str(error)
        problem, probe = "", self._root / f"{PROBE}{secrets.token_hex(8)}"
        try:
            _write(probe)
        except OSError as error:
            problem = self._unwritable(error)
        problems = comm.all_gather_object(problem) if comm.get_world_size() > 1 else [problem]
        probe.unlink(missing_ok=True)
        return next((text for text in problems if text), "")

    def _unwritable(self, error: OSError) -> str:
        return (
            f"rank {comm.get_rank()} on host {platform.node()} cannot write to {self._root} "
            f"({error.strerror or error}); give --save a folder that can be written"
        )

    def close(self) -> None:
        """Give the folder up; not collective."""
        self._lock.release()


def _write(path: Path) -> None:
    """A new file, whatever somebody has put there, that has reached the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(handle, bytes(_PROBE_BYTES))
        os.fsync(handle)
    finally:
        os.close(handle)
