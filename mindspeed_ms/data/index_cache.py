"""Index arrays kept on disk under Megatron's names, so that either framework reads the other's.

``<md5>-<class>-<split>-description.txt`` says what was built, its md5 names all files, and each
array is one ``.npy`` beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


def describe(identifiers: Mapping[str, object]) -> str:
    """The description whose md5 names the files."""
    return json.dumps(identifiers, indent=4, default=lambda item: item.unique_identifiers)


def description_hash(description: str) -> str:
    """Name of a description."""
    return hashlib.md5(description.encode("utf-8"), usedforsecurity=False).hexdigest()


class IndexCache:
    """The files of one dataset.

    Args:
        directory: where they lie.
        kind: ``<class>-<split>``.
        description: text from ``describe``.
        names: arrays, in the order in which ``load`` returns them.
    """

    def __init__(
        self, directory: str | Path, kind: str, description: str, names: Sequence[str]
    ) -> None:
        self.directory = Path(directory)
        self._description = description
        stem = f"{description_hash(description)}-{kind}"
        self.description_path = self.directory / f"{stem}-description.txt"
        self.array_paths = [self.directory / f"{stem}-{name}.npy" for name in names]

    def exists(self) -> bool:
        """Whether all files are there."""
        return all(path.is_file() for path in [*self.array_paths, self.description_path])

    def load(self) -> list[NDArray]:
        """Map the arrays into memory.

        Raises:
            ValueError: a file cannot be read as an array.
        """
        arrays = []
        for path in self.array_paths:
            try:
                arrays.append(_load_array(path))
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(
                    f"index cache file {path} cannot be read ({error}); delete it, it is rebuilt "
                    "at the next start"
                ) from error
        return arrays

    def save(self, arrays: Sequence[NDArray]) -> None:
        """Write all files, the description last, each appearing complete or not at all.

        Raises:
            ValueError: the directory cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path, array in zip(self.array_paths, arrays, strict=True):
                _write_atomically(path, array)
            _write_atomically(self.description_path, self._description)
        except OSError as error:
            raise ValueError(
                f"index cache {self.directory} cannot be written ({error}); set --data-cache-path "
                "to a directory that can"
            ) from error
        logger.info("saved the index to %s", self.description_path)


def _load_array(path: Path) -> NDArray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        # An array without elements cannot be mapped; anything else fails here again.
        return np.load(path, allow_pickle=False)


def _write_atomically(path: Path, content: NDArray | str) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as stream:
            _write_content(stream, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_content(stream: BinaryIO, content: NDArray | str) -> None:
    if isinstance(content, str):
        stream.write(content.encode("utf-8"))
    else:
        np.save(stream, content, allow_pickle=False)
