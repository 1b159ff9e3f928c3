"""safetensors files: headers are read on their own, tensors written one after another.

The library of that name builds whole files in memory and maps files into it. Here a rank's file is
written straight from the tensors' own memory, with a checksum on the way, and read in parts.

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.core.dist_checkpointing import dtypes
from mindspeed_ms.core.dist_checkpointing.ahead import one_ahead

MAX_HEADER_BYTES = 1 << 30

WRITE_BYTES = 1 << 20
"""Written at a time: little enough to be in the cache still when it is summed up."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to write: raw bfloat16 bits have the type ``BF16``."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    array: np.ndarray | Callable[[], np.ndarray]
    """Contiguous, any shape of as many elements; or what makes it when it is its turn."""

    def load(self) -> np.ndarray:
        """The numbers."""
        return self.array() if callable(self.array) else self.array


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes before it, from the start of the file."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive bytes of a tensor in a file."""

    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and checksum of a written file."""

    num_bytes: int
    crc32: int


class ChecksumFile:
    """A new file, written once from the start to the end, that knows its size and CRC-32.

    Args:
        path: the file.
        with_crc: compute the CRC-32, which costs about as much as writing; else it stays 0.
    """

    def __init__(self, path: Path, with_crc: bool = True) -> None:
        self._with_crc = with_crc
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self.num_bytes = self.crc32 = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        view = memoryview(data)
        while view:
            part = view[:WRITE_BYTES]
            count = os.write(self._handle, part)
            if self._with_crc:
                self.crc32 = zlib.crc32(part[:count], self.crc32)
            self.num_bytes += count
            view = view[count:]

    def write_array(self, array: np.ndarray) -> None:
        """Append the memory of a contiguous array."""
        if array.size:
            self.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def close(self) -> FileRecord:
        """Bring everything to the disk and close.

        Raises:
            OSError: the disk is full or failing.
        """
        try:
            os.fsync(self._handle)
        finally:
            os.close(self._handle)
        return FileRecord(self.num_bytes, self.crc32)

    def abandon(self) -> None:
        """Close after a failure."""
        os.close(self._handle)


def header_of(
    entries: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The first bytes of a file that will hold these tensors (key, type, shape) in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for key, dtype, shape in entries:
        end = position + math.prod(shape) * dtypes.width(dtype)
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_file(
    path: Path,
    entries: Sequence[Entry],
    metadata: Mapping[str, str] | None = None,
    with_crc: bool = True,
) -> tuple[FileRecord, list[list[Stretch]]]:
    """Write a file and bring it to the disk.

    Returns:
        Size and checksum, and where each entry lies.
    """
    file = ChecksumFile(path, with_crc)
    stretches = []
    try:
        file.write(header_of([(e.key, e.dtype, e.shape) for e in entries], metadata))
        for array in one_ahead(entry.load() for entry in entries):
            stretches.append([Stretch(file.num_bytes, array.nbytes)])
            file.write_array(array)
    except BaseException:
        file.abandon()
        raise
    return file.close(), stretches


def read_header(path: Path) -> tuple[dict[str, Place], dict[str, str]]:
    """Tensors of a file by key, and its metadata.

    Raises:
        ValueError: the file is no safetensors file, or is cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(
                f"{path} is no complete safetensors file ({size} bytes); it is damaged: use "
                "another checkpoint"
            )
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            places = {
                key: Place(
                    item["dtype"], tuple(item["shape"]), 8 + length + int(item["data_offsets"][0])
                )
                for key, item in header.items()
            }
            end = max(
                (8 + length + int(item["data_offsets"][1]) for item in header.values()), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} has a header that cannot be read ({error}); it is damaged: use another "
                "checkpoint"
            ) from None
    if end > size:
        raise ValueError(
            f"{path} has {size} bytes, but its tensors need {end}; it was cut off: use another "
            "checkpoint"
        )
    unknown = {place.dtype for place in places.values()} - dtypes.NUMPY.keys()
    if unknown:
        raise ValueError(
            f"{path} holds numbers of type {sorted(unknown)[0]}, which training does not use; "
            "convert them first"
        )
    return places, metadata
