# SPDX-License-Identifier: Apache-2.0
"""ZIP archives without compression, written straight through: entry after entry, then the list.

The standard library goes back to every entry to note its checksum, and sums up with zlib. Here the
checksum follows the data, as the format allows, so that a file is written from the start to the
end. Data begins at multiples of 64 bytes, as torch wants it to map files into memory.

Source: PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import TracebackType

from mindspeed_ms.formats.containers.new_file import NewFile

_ALIGNMENT = 64
_DATE = (1 << 5) | 1  # 1980-01-01, the first there is
_FLAGS = 1 << 3 | 1 << 11  # checksum and sizes follow the data; names are UTF-8
_LONG = _LONG_FROM = 0xFFFFFFFF
"""From so many bytes on numbers have 64 bits, in places of their own; this is put instead."""
_LONG_VERSION, _VERSION = 45, 20
_LONG_TAG, _PADDING_TAG = 1, 0x4246


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the list says of an entry."""

    name: bytes
    offset: int
    size: int
    crc32: int


class ZipWriter:
    """Writes an archive.

    Args:
        file: empty, with checksums.
    """

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self._entries: list[_Entry] = []

    def entry(self, name: str, size: int) -> _Open:
        """A new entry; its ``size`` bytes are written in the context of the result."""
        return _Open(self._file, self._entries, name.encode(), size)

    def finish(self) -> None:
        """Write the list of all entries."""
        start = self._file.num_bytes
        for entry in self._entries:
            self._file.write(_listed(entry))
        size, count = self._file.num_bytes - start, len(self._entries)
        if start + size >= _LONG_FROM or count >= 0xFFFF:
            end = self._file.num_bytes
            numbers = [44, _LONG_VERSION, _LONG_VERSION, 0, 0, count, count, size, start]
            self._file.write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", *numbers))
            self._file.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1))
            count, size, start = min(count, 0xFFFF), _LONG, _LONG
        numbers = [0, 0, count, count, size, start, 0]
        self._file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", *numbers))


class _Open:
    """An entry that is being written."""

    def __init__(self, file: NewFile, entries: list[_Entry], name: bytes, size: int) -> None:
        self._file, self._entries, self._name, self._size = file, entries, name, size
        self._offset = file.num_bytes

    def __enter__(self) -> NewFile:
        self._file.write(self._header())
        self._first = self._file.num_bytes
        self._file.take_crc()
        return self._file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        written, crc = self._file.num_bytes - self._first, self._file.take_crc()
        if written != self._size:
            raise ValueError(
                f"{self._name.decode()} has {written} bytes instead of {self._size}; the source is "
                "incomplete"
            )
        form = "<4sLQQ" if self._is_long else "<4sLLL"
        self._file.write(struct.pack(form, b"PK\x07\x08", crc, written, written))
        self._entries.append(_Entry(self._name, self._offset, written, crc))

    @property
    def _is_long(self) -> bool:
        return self._size >= _LONG_FROM

    def _header(self) -> bytes:
        extra = struct.pack("<2H2Q", _LONG_TAG, 16, 0, 0) if self._is_long else b""
        used = self._offset + 30 + len(self._name) + len(extra) + 4
        padding = -used % _ALIGNMENT
        extra += struct.pack("<2H", _PADDING_TAG, padding) + bytes(padding)
        version = _LONG_VERSION if self._is_long else _VERSION
        size = _LONG if self._is_long else 0
        numbers = (version, _FLAGS, 0, 0, _DATE, 0, size, size, len(self._name), len(extra))
        return struct.pack("<4s5H3L2H", b"PK\x03\x04", *numbers) + self._name + extra


def _listed(entry: _Entry) -> bytes:
    """An entry's line in the list."""
    size, offset, extra = entry.size, entry.offset, b""
    if size >= _LONG_FROM:
        extra, size = struct.pack("<2Q", size, size), _LONG
    if offset >= _LONG_FROM:
        extra, offset = extra + struct.pack("<Q", offset), _LONG
    if extra:
        extra = struct.pack("<2H", _LONG_TAG, len(extra)) + extra
    version = _LONG_VERSION if extra else _VERSION
    numbers = [version, version, _FLAGS, 0, 0, _DATE, entry.crc32, size, size]
    numbers += [len(entry.name), len(extra), 0, 0, 0, 0, offset]
    return struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *numbers) + entry.name + extra
