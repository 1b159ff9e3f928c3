"""safetensors files: headers are read on their own, tensors written one after another.

The library of that name builds whole files in memory and maps files into it. Here a rank's file is
written straight from the tensors' own memory, with a checksum on the way, and read in parts.

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.containers.ahead import one_ahead
from mindspeed_ms.formats.containers.new_file import FileRecord, NewFile

MAX_HEADER_BYTES = 1 << 30


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
    with_crc: bool = True,
) -> tuple[FileRecord, list[list[Stretch]]]:
    """Write a file and bring it to the disk.

    Returns:
        Size and checksum, and where each entry lies.
    """
    header = header_of([(e.key, e.dtype, e.shape) for e in entries], metadata)
    file = NewFile(path, len(header) + sum(entry.num_bytes for entry in entries), with_crc)
    stretches = []
    try:
        file.write(header)
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
