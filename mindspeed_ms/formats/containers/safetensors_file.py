# SPDX-License-Identifier: Apache-2.0
"""safetensors files: headers are read on their own, tensors written one after another.

The library of that name builds whole files in memory and maps files into it. Here a rank's file is
written straight from the tensors' own memory, with a checksum on the way, and read in parts.

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.files.checksum import Checksum
from mindspeed_ms.files.regular_file import json_object, open_regular
from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.containers.ahead import one_ahead
from mindspeed_ms.formats.containers.new_file import FileRecord, NewFile

MAX_HEADER_BYTES = 100_000_000
"""As in the library of that name."""


SEAL = "mindspeed_ms.crc32"
"""Key of the metadata: CRC-32 of everything behind the header, eight hexadecimal digits."""
_UNSEALED = "--crc32-"
_SEALED = re.compile("[0-9a-f]{8}")


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

    @property
    def num_bytes(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * dtypes.width(self.dtype)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes before it, from the start of the file."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * dtypes.width(self.dtype)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive bytes of a tensor in a file."""

    offset: int
    num_bytes: int


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
    is_sealed: bool = False,
) -> tuple[FileRecord, list[list[Stretch]]]:
    """Write a file and bring it to the disk.

    Args:
        path: the file.
        entries: its tensors.
        metadata: texts for the header.
        is_sealed: note the checksum of the numbers in the header, in files that no index knows.

    Returns:
        Size and checksum (if it is sealed, of the numbers alone), and where each entry lies.
    """
    described = [(e.key, e.dtype, e.shape) for e in entries]
    if is_sealed:
        metadata = {**(metadata or {}), SEAL: _UNSEALED}
    header = header_of(described, metadata)
    file = NewFile(path, len(header) + sum(entry.num_bytes for entry in entries))
    stretches = []
    try:
        file.write(header)
        if is_sealed:
            file.take_crc()
        for array in one_ahead(entry.load() for entry in entries):
            stretches.append([Stretch(file.num_bytes, array.nbytes)])
            file.write_array(array)
        if is_sealed:
            file.patch(header.index(_UNSEALED.encode()), f"{file.crc32:08x}".encode())
    except BaseException:
        file.abandon()
        raise
    return file.close(), stretches


def seal_of(
    path: Path, places: Mapping[str, Place], metadata: Mapping[str, str]
) -> Checksum | None:
    """The checksum that a file's header has of its numbers; None where it has none.

    Args:
        path: the file.
        places: from ``read_header``.
        metadata: from ``read_header``.

    Raises:
        ValueError: it is no checksum.
    """
    if SEAL not in metadata or not places:
        return None
    start = min(place.offset for place in places.values())
    size = sum(place.num_bytes for place in places.values())
    if not _SEALED.fullmatch(metadata[SEAL]):
        raise ValueError(f"{path} has a header that cannot be read ({SEAL}); it is damaged")
    return Checksum(path, start, size, int(metadata[SEAL], 16))


def read_header(path: Path) -> tuple[dict[str, Place], dict[str, str]]:
    """Tensors of a file by key, and its metadata.

    Raises:
        OSError: there is no such file.
        ValueError: the file is no safetensors file, is cut off, or its tensors do not lie one
            behind the other from the header to the end.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8 or length > MAX_HEADER_BYTES:
            raise ValueError(
                f"{path} is no complete safetensors file ({size} bytes); it is damaged: use "
                "another checkpoint"
            )
        text = file.read(length)
    try:
        header = json_object(text, "the header")
        metadata = header.pop("__metadata__", None) or {}
        places = {key: _place(item, 8 + length) for key, item in header.items()}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata must be texts")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} has a header that cannot be read ({error}); it is damaged: use another "
            "checkpoint"
        ) from None
    _check_places(path, places, 8 + length, size)
    return places, metadata


def _place(item: Any, start: int) -> Place:
    shape, (first, last) = tuple(item["shape"]), item["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
        raise TypeError(f"shape {str(shape)[:60]} at {first}")
    dtype = str(item["dtype"])
    if dtype not in dtypes.NUMPY:
        return Place(dtype, shape, start + first)
    if last - first != math.prod(shape) * dtypes.width(dtype):
        raise ValueError(f"{last - first} bytes for {dtype} {str(list(shape))[:60]}")
    return Place(dtype, shape, start + first)


def _check_places(path: Path, places: Mapping[str, Place], start: int, size: int) -> None:
    """Every byte behind the header belongs to one tensor."""
    unknown = sorted({place.dtype for place in places.values()} - dtypes.NUMPY.keys())
    if unknown:
        raise ValueError(
            f"{path} holds numbers of type {unknown[0][:20]}, which training does not use; "
            "convert them first"
        )
    position = start
    for key, place in sorted(places.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if place.offset != position:
            raise ValueError(
                f"{path} has {key[:80]} at byte {place.offset} where {position} is due; its header "
                "is damaged: use another checkpoint"
            )
        position += place.num_bytes
    if position > size:
        raise ValueError(
            f"{path} has {size} bytes, but its tensors need {position}; it was cut off: use "
            "another checkpoint"
        )
    if position < size:
        raise ValueError(
            f"{path} has {size} bytes, of which its header knows {position}; it is damaged: use "
            "another checkpoint"
        )
