# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: names, atomic writes, which ones are complete, which may go.

    <save>/latest_checkpointed_iteration.txt      the iteration to resume from
    <save>/iter_0000100/index.json                written last: a folder without it is incomplete
    <save>/iter_0000100/config.yaml               the resolved configuration
    <save>/iter_0000100/rank_00000.safetensors    what rank 0 has written, and so on

Every file is written under another name, brought to the disk and renamed. The rename of
``index.json`` is the moment at which a checkpoint exists; the marker moves after that.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mindspeed_ms.files.regular_file import read_text, real_path
from mindspeed_ms.formats.containers.new_file import NewFile

logger = logging.getLogger(__name__)

LATEST = "latest_checkpointed_iteration.txt"
RELEASE = "release"
INDEX = "index.json"
CONFIG = "config.yaml"
PARTIAL = ".partial"
"""End of the names of files that are being written."""

_MAX_MARKER_BYTES = 4096
_NUMBER = re.compile(r"[0-9]{1,15}")
_ITERATION = re.compile(r"iter_(\d{7,15})")
_OWN_FILE = re.compile(
    r"(rank_\d{5,}(-\d+)?\.(safetensors|ckpt)|index\.json|config(-\d+)?\.yaml)(\.partial)?"
)
_OWN_MARK = re.compile(
    r"rank_\d{5,}(-\d+)?\.(safetensors|ckpt)(\.partial)?|index\.json(\.partial)?"
)
"""What no other format has in a checkpoint's folder."""


def is_own(name: str) -> bool:
    """Whether a file of this name makes a folder one of this project's checkpoints."""
    return _OWN_MARK.fullmatch(name) is not None


def inside(folder: Path, name: str) -> Path:
    """A file that an index names.

    Raises:
        ValueError: it would lie outside of the folder, by its name or through a link.
    """
    path = folder / name
    is_plain = isinstance(name, str) and name and not Path(name).is_absolute()
    if not is_plain or "\0" in name or ".." in Path(name).parts:
        raise ValueError(f"{folder} names a file outside of it ({name!r:.80}); it is damaged")
    if path.is_symlink() and not real_path(path).is_relative_to(real_path(folder)):
        raise ValueError(
            f"{path} is a link to {real_path(path)}, outside of the checkpoint; copy the file "
            "itself"
        )
    return path


def iteration_folder(root: Path, iteration: int) -> Path:
    """Folder of an iteration, under Megatron's name."""
    return root / f"iter_{iteration:07d}"


def sync_folder(folder: Path) -> None:
    """Bring renames within a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(partial: Path, final: Path) -> None:
    """Rename a complete file and bring that to the disk.

    Raises:
        OSError: that cannot be done; the complete file is removed then.
    """
    try:
        os.replace(partial, final)
    except OSError:
        with suppress(OSError):
            os.unlink(partial)
        raise
    sync_folder(final.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is there as a whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    _write(partial, text)
    put_in_place(partial, path)


def _write(path: Path, text: str) -> None:
    file = NewFile(path, with_crc=False)
    try:
        file.write(text.encode())
    except BaseException:
        file.abandon()
        raise
    file.close()


class NewFiles:
    """Files of a checkpoint that take their places together, when all of them are complete.

    Until then nothing of an older checkpoint in their place is touched, and a failure leaves
    nothing behind. Then what was there goes, and the new files come: whoever is killed in between
    leaves a checkpoint that lacks files, never one that is half old and half new.

    Used as a context; the files take their places when it ends without an error.
    """

    def __init__(self) -> None:
        self._names: dict[Path, Path] = {}
        self._old: list[Path] = []

    def partial(self, final: Path) -> Path:
        """Where to write a file whose place will be ``final``; its folder is made."""
        final.parent.mkdir(parents=True, exist_ok=True)
        self._names[final] = final.with_name(final.name + PARTIAL)
        return self._names[final]

    def write_text(self, final: Path, text: str) -> None:
        """A small file among them."""
        _write(self.partial(final), text)

    def replaces(self, paths: Iterable[Path]) -> None:
        """Files of an older checkpoint, which go first, in this order."""
        self._old += paths

    def __enter__(self) -> NewFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            for path in self._names.values():
                with suppress(OSError):
                    path.unlink()
            return
        for path in self._old:
            with suppress(FileNotFoundError):
                path.unlink()
        for folder in dict.fromkeys(path.parent for path in self._old):
            if folder.is_dir():
                sync_folder(folder)
        for final, partial in self._names.items():
            put_in_place(partial, final)


def set_latest(root: Path, iteration: int) -> None:
    """Move the marker."""
    write_text(root / LATEST, str(iteration))


def read_latest(root: Path) -> int | str | None:
    """What the marker says: an iteration, ``release``, or None where there is no marker.

    Raises:
        ValueError: the marker holds something else.
    """
    path = root / LATEST
    if not path.exists():
        return None
    text = read_text(path, limit=_MAX_MARKER_BYTES).strip()
    if text == RELEASE:
        return RELEASE
    if not _NUMBER.fullmatch(text):
        raise ValueError(
            f"{path} holds {text[:40]!r}, but must hold an iteration or 'release'; correct it, or "
            "name an iteration with --ckpt-step"
        )
    return int(text)


def iterations_in(root: Path) -> list[int]:
    """Iterations that have a folder, of whatever format, ascending."""
    if not root.is_dir():
        return []
    found = (_ITERATION.fullmatch(item.name) for item in root.iterdir() if item.is_dir())
    return sorted(int(match[1]) for match in found if match)


def complete_iterations(root: Path) -> list[int]:
    """Iterations with a complete checkpoint of this project, ascending."""
    return [i for i in iterations_in(root) if (iteration_folder(root, i) / INDEX).is_file()]


def next_generation(folder: Path) -> str:
    """What to add to file names, so that files of an earlier save of this iteration stay whole."""
    if not (folder / INDEX).is_file():
        return ""
    taken = {item.name for item in folder.iterdir()}
    number = 2
    while any(f"-{number}." in name for name in taken):
        number += 1
    return f"-{number}"


def remove_leftovers(folder: Path, keep: set[str]) -> None:
    """Remove this project's files in a folder that are not among ``keep``."""
    for item in folder.iterdir():
        if item.name not in keep and _OWN_FILE.fullmatch(item.name):
            item.unlink()


def prune(root: Path, newest: int, old: Iterable[int]) -> None:
    """Remove old checkpoints of this project, and torn ones of killed runs before ``newest``.

    Checkpoints of other formats are never touched.
    """
    torn = [i for i in iterations_in(root) if i < newest and _is_torn(iteration_folder(root, i))]
    there = [iteration for iteration in old if iteration_folder(root, iteration).is_dir()]
    for iteration in there:
        folder = iteration_folder(root, iteration)
        (folder / INDEX).unlink(missing_ok=True)  # first: half a folder must not look complete
        sync_folder(folder)
    for iteration in (*there, *torn):
        folder = iteration_folder(root, iteration)
        remove_leftovers(folder, set())
        if not any(folder.iterdir()):
            folder.rmdir()


def _is_torn(folder: Path) -> bool:
    names = [item.name for item in folder.iterdir()]
    return INDEX not in names and all(_OWN_FILE.fullmatch(name) for name in names)


def free_bytes(folder: Path) -> int:
    """Space left on the disk of a folder."""
    return shutil.disk_usage(folder).free
