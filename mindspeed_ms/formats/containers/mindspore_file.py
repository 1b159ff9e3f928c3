# SPDX-License-Identifier: Apache-2.0
"""MindSpore's ``.ckpt`` files, read in parts and written one tensor after another.

The file is a protocol buffer message ``Checkpoint``: a list of values, each a tag (the name) and a
tensor (dimensions, type, bytes). A large tensor is cut into values of the same tag that follow each
other. A file may end with ``crc_num`` and ten bytes, the CRC-32 of what lies before.

Source: MindSpore ``train/serialization.py`` and ``checkpoint.proto``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mindspeed_ms.files.checksum import Checksum
from mindspeed_ms.files.regular_file import open_regular
from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.containers.ahead import one_ahead
from mindspeed_ms.formats.containers.new_file import FileRecord, NewFile
from mindspeed_ms.formats.containers.safetensors_file import Entry, Stretch

_NAMES = {
    "BOOL": "Bool",
    "I8": "Int8",
    "U8": "UInt8",
    "I16": "Int16",
    "U16": "UInt16",
    "I32": "Int32",
    "U32": "UInt32",
    "I64": "Int64",
    "U64": "UInt64",
    "F16": "Float16",
    "BF16": "BFloat16",
    "F32": "Float32",
    "F64": "Float64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}

SLICE_BYTES = 512 << 20
"""A tensor larger than this is cut."""

_CRC_TAG = b"crc_num"
_CRC_BYTES = len(_CRC_TAG) + 10

TEXT = "str"
"""Type of a value that is text, stored as UTF-32."""


@dataclass(slots=True)
class CkptTensor:
    """A tensor of a file, in one or more stretches."""

    dtype: str
    shape: tuple[int, ...]
    stretches: list[Stretch]


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        low, value = value & 0x7F, value >> 7
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _field(number: int, payload_size: int) -> bytes:
    """Key and length of a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(payload_size)


def _prefix(key: str, dtype: str, shape: Sequence[int], num_bytes: int) -> bytes:
    """Everything of a value before its bytes."""
    name = key.encode()
    tensor = b"".join(_varint(1 << 3) + _varint(size) for size in shape or (0,))
    kind = _NAMES[dtype].encode()
    tensor += _field(2, len(kind)) + kind + _field(3, num_bytes)
    value = _field(1, len(name)) + name + _field(2, len(tensor) + num_bytes) + tensor
    return _field(1, len(value) + num_bytes) + value


def write_file(
    path: Path, entries: Sequence[Entry], with_crc: bool = False
) -> tuple[FileRecord, list[list[Stretch]]]:
    """Write a file and bring it to the disk.

    Returns:
        Size and checksum, and where each entry lies.
    """
    file = NewFile(path, sum(entry.num_bytes for entry in entries))
    try:
        arrays = one_ahead(entry.load() for entry in entries)
        stretches = [
            write_entry(file, replace(entry, array=array))
            for entry, array in zip(entries, arrays, strict=True)
        ]
        if with_crc:
            file.write(_CRC_TAG + file.crc32.to_bytes(10, "big"))
    except BaseException:
        file.abandon()
        raise
    return file.close(), stretches


def write_entry(file: NewFile, entry: Entry) -> list[Stretch]:
    """Append a tensor, cut into slices if it is large."""
    flat = np.ascontiguousarray(entry.load()).reshape(-1)
    step = SLICE_BYTES // dtypes.width(entry.dtype)
    stretches = []
    for first in range(0, max(flat.size, 1), step):
        part = flat[first : first + step]
        file.write(_prefix(entry.key, entry.dtype, entry.shape, part.nbytes))
        stretches.append(Stretch(file.num_bytes, part.nbytes))
        file.write_array(part)
    return stretches


class _Scanner:
    """Walks over the fields of a message, jumping over tensor bytes."""

    def __init__(self, file: BinaryIO, path: Path, end: int) -> None:
        self._file, self._path, self._end = file, path, end
        self.position = 0

    def damaged(self, why: str) -> ValueError:
        return ValueError(
            f"{self._path} is no complete MindSpore checkpoint file ({why} at byte "
            f"{self.position}); it is damaged: use another one"
        )

    def take(self, count: int) -> bytes:
        if self.position + count > self._end:
            raise self.damaged("it ends too early")
        self._file.seek(self.position)
        data = self._file.read(count)
        self.position += count
        return data

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise self.damaged("a number is too long")

    def fields(self, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, kind, length or value); the caller takes or skips what has a length."""
        if end > self._end:
            raise self.damaged("it ends too early")
        while self.position < end:
            key = self.varint()
            if key & 7 not in (0, 2):
                raise self.damaged("a field has an unknown form")
            value = self.varint()
            if key & 7 == 2 and self.position + value > end:
                raise self.damaged("a field is longer than what it lies in")
            yield key >> 3, key & 7, value
        if self.position != end:
            raise self.damaged("a field is longer than what it lies in")

    def skip(self, count: int) -> None:
        if self.position + count > self._end:
            raise self.damaged("it ends too early")
        self.position += count

    def text(self, count: int, encoding: str = "utf-8") -> str:
        try:
            return self.take(count).decode(encoding)
        except UnicodeDecodeError:
            raise self.damaged("a text cannot be read") from None


def read_index(path: Path) -> tuple[dict[str, CkptTensor], dict[str, str]]:
    """Tensors of a file by name, and its texts.

    Raises:
        OSError: there is no such file.
        ValueError: the file is damaged, encrypted, or something else.
    """
    tensors: dict[str, CkptTensor] = {}
    texts: dict[str, str] = {}
    with open_regular(path) as file:
        size = file.seek(0, 2)
        end = size - _CRC_BYTES if _has_crc(file, size) else size
        scan = _Scanner(file, path, end)
        for number, kind, length in scan.fields(end):
            if number != 1 or kind != 2:
                raise scan.damaged("it holds no tensor where one is expected")
            _read_value(scan, scan.position + length, tensors, texts)
        for name, tensor in tensors.items():
            found = sum(stretch.num_bytes for stretch in tensor.stretches)
            if found != math.prod(tensor.shape) * dtypes.width(tensor.dtype):
                raise scan.damaged(
                    f"{name[:80]} has {found} bytes for {tensor.dtype} {str(tensor.shape)[:60]}"
                )
    return tensors, texts


def _read_value(
    scan: _Scanner, end: int, tensors: dict[str, CkptTensor], texts: dict[str, str]
) -> None:
    name, is_read = "", False
    for number, kind, length in scan.fields(end):
        if kind == 2 and number == 1 and not is_read:
            name = scan.text(length)
        elif kind == 2 and number == 2 and not is_read:
            is_read = True
            dtype, shape, stretch = _read_tensor(scan, scan.position + length)
            if dtype == TEXT:
                scan.position, after = stretch.offset, scan.position
                texts[name] = scan.text(stretch.num_bytes, "utf-32-le").rstrip("\0")
                scan.position = after
            elif dtype not in _DTYPES:
                raise scan.damaged(f"{name[:80]} has the unknown type {dtype[:20]!r}")
            else:
                _add(scan, name, CkptTensor(_DTYPES[dtype], shape, [stretch]), tensors)
        else:
            raise scan.damaged(f"{name[:80] or 'a value'} is no plain tensor")
    if not is_read:
        raise scan.damaged(f"{name[:80] or 'a value'} has no tensor")


def _add(scan: _Scanner, name: str, part: CkptTensor, tensors: dict[str, CkptTensor]) -> None:
    """A tensor, or the next slice of the last one."""
    if name not in tensors:
        tensors[name] = part
        return
    known = tensors[name]
    if (known.dtype, known.shape) != (part.dtype, part.shape) or name != next(reversed(tensors)):
        raise scan.damaged(f"{name[:80]} is there twice")
    known.stretches += part.stretches


def _read_tensor(scan: _Scanner, end: int) -> tuple[str, tuple[int, ...], Stretch]:
    dims: list[int] = []
    dtype: str | None = None
    stretch: Stretch | None = None
    for number, kind, length in scan.fields(end):
        if number == 1 and kind == 0:
            dims.append(length)
        elif number == 1:  # packed
            stop = scan.position + length
            while scan.position < stop:
                dims.append(scan.varint())
        elif number == 2 and kind == 2 and dtype is None:
            dtype = scan.text(length)
        elif number == 3 and kind == 2 and stretch is None:
            stretch = Stretch(scan.position, length)
            scan.skip(length)
        else:
            raise scan.damaged("a tensor has a field too many")
    if dtype is None or stretch is None:
        raise scan.damaged("a tensor has no type or no numbers")
    is_single = dims == [0] and stretch.num_bytes > 0
    return dtype, () if is_single else tuple(dims), stretch


def _has_crc(file: BinaryIO, size: int) -> bool:
    if size < _CRC_BYTES:
        return False
    file.seek(size - _CRC_BYTES)
    return file.read(len(_CRC_TAG)) == _CRC_TAG


def checksum_of(path: Path) -> Checksum | None:
    """The checksum at the end of a file; None when it has none.

    Raises:
        OSError: there is no such file.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if not _has_crc(file, size):
            return None
        expected = int.from_bytes(file.read(10), "big")
    return Checksum(path, 0, size - _CRC_BYTES, expected)
