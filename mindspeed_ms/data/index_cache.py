# SPDX-License-Identifier: Apache-2.0
"""Index arrays kept on disk under Megatron's names, so that either framework reads the other's.

``<md5>-<class>-<split>-description.txt`` says what was built, its md5 names all files, and each
array is one ``.npy`` beside it. The description names the data by its path. What lies under that
path may have been made anew since, so ``-source.json``, which Megatron does not know, says from
which state of the data the arrays were made, and what they were: arrays of another state, or
damaged ones, are built again. Megatron's own arrays, which have no such file, must be right by
their values.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.files.crc import crc32_of_file
from mindspeed_ms.files.regular_file import is_regular, open_regular, read_json
from mindspeed_ms.files.whole import appears_whole

logger = logging.getLogger(__name__)

Source = Mapping[str, Any]
"""State of the data, as JSON can hold it."""


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
        source: state of the data.
        is_right: whether arrays can be those of the data, by their values; called for arrays of
            which nobody has noted from which state they were made.
    """

    def __init__(  # noqa: PLR0913 - what files are named after, and what they must fit
        self,
        directory: str | Path,
        kind: str,
        description: str,
        names: Sequence[str],
        source: Source,
        is_right: Callable[[Sequence[NDArray]], bool],
    ) -> None:
        self.directory = Path(directory)
        self._description, self._source, self._is_right = description, source, is_right
        stem = f"{description_hash(description)}-{kind}"
        self.description_path = self.directory / f"{stem}-description.txt"
        self.source_path = self.directory / f"{stem}-source.json"
        self.array_paths = [self.directory / f"{stem}-{name}.npy" for name in names]

    def load(self) -> list[NDArray] | None:
        """Map the arrays into memory; None if they have to be built, which is said."""
        if not all(map(is_regular, [*self.array_paths, self.description_path])):
            return None
        try:
            noted = read_json(self.source_path) if self.source_path.exists() else None
            if noted is not None:
                self._compare(noted)
            arrays = [map_array(path) for path in self.array_paths]
            if noted is None and not self._is_right(arrays):
                raise ValueError("its values are not those of the data")
        except (OSError, ValueError, RecursionError) as error:
            logger.warning(
                "the index %s is built again: %s",
                self.description_path,
                " ".join(str(error).split()),
            )
            return None
        return arrays

    def _compare(self, noted: Mapping[str, Any]) -> None:
        """Raise a ValueError if the arrays are not those that were made of this data."""
        if noted.get("source") != dict(self._source):
            raise ValueError(
                f"it was made of other data under the same path ({noted.get('source')}, now "
                f"{dict(self._source)})"
            )
        sums = noted.get("crc32")
        for path in self.array_paths:
            expected = sums.get(path.name) if isinstance(sums, dict) else None
            if crc32_of_file(path, path.stat().st_size) != expected:
                raise ValueError(f"{path.name} has another checksum than it was written with")

    def save(self, arrays: Sequence[NDArray]) -> None:
        """Write all files, the description last, each appearing complete or not at all.

        Raises:
            ValueError: the directory cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.source_path.unlink(missing_ok=True)
            sums = {
                path.name: _write_atomically(path, array)
                for path, array in zip(self.array_paths, arrays, strict=True)
            }
            noted = {"source": dict(self._source), "crc32": sums}
            _write_atomically(self.source_path, json.dumps(noted))
            _write_atomically(self.description_path, self._description)
        except OSError as error:
            raise ValueError(
                f"index cache {self.directory} cannot be written ({error}); set --data-cache-path "
                "to a directory that can"
            ) from error
        logger.info("saved the index to %s", self.description_path)


def map_array(path: Path) -> NDArray:
    """An array, mapped; what it claims to be is compared with the file's size before.

    Raises:
        ValueError: it is no array, or not all of it is there.
    """
    with open_regular(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
        offset = stream.tell()
    if dtype.hasobject or offset + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{path.name} is no array of {dtype} {shape} in {size} bytes")
    if 0 in shape:  # an array without elements cannot be mapped
        return np.empty(shape, dtype)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _write_atomically(path: Path, content: NDArray | str) -> int:
    """Write a file; return its checksum."""
    with appears_whole(path) as unfinished:
        with open(unfinished, "xb") as stream:
            _write_content(stream, content)
        return crc32_of_file(unfinished, unfinished.stat().st_size)


def _write_content(stream: BinaryIO, content: NDArray | str) -> None:
    if isinstance(content, str):
        stream.write(content.encode("utf-8"))
    else:
        np.save(stream, content, allow_pickle=False)
