# SPDX-License-Identifier: Apache-2.0
"""``torch.save`` files without torch: read in parts, and nothing in them is ever executed.

Such a file is a ZIP archive: ``data.pkl``, a pickle that describes the objects, and one entry per
storage with raw numbers, not compressed. Every entry carries a CRC-32, which is compared before
anything of it is used; torch can leave them out (``set_crc32_options``), then all are 0.

Source: PyTorch ``torch/serialization.py`` (layout).
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mindspeed_ms.files.checksum import Checksum
from mindspeed_ms.files.crc import crc32
from mindspeed_ms.files.regular_file import open_regular
from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.catalog import StoredPiece
from mindspeed_ms.formats.containers.safe_pickle import (
    SafeUnpickler,
    TensorRef,
    TorchDtype,
    flat_names,
    plain,
)
from mindspeed_ms.plan.region import Region, Span

__all__ = ["TensorRef", "TorchDtype", "TorchFile", "flat_names", "plain"]

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _UTF8 = 1, 1 << 11

_UNREADABLE = (
    zipfile.BadZipFile,
    LookupError,
    EOFError,
    struct.error,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)
"""What reading the list of a damaged archive may raise."""


class TorchFile:
    """A ``torch.save`` file, or one that lies inside another file.

    Args:
        path: the file.
        start: bytes before it.
        size: its bytes; None for the rest of the file.

    Raises:
        ValueError: it is none, or is damaged.
    """

    def __init__(self, path: Path, start: int = 0, size: int | None = None) -> None:
        self.path, self._start = path, start
        self._checksums: dict[str, Checksum] = {}
        with open_regular(path) as raw:
            end = raw.seek(0, 2)
            window = _Window(raw, start, end - start if size is None else size)
            if start < 0 or start + window.size > end or window.size < 0:
                raise self._incomplete(f"{window.size} bytes from {start} on, it has {end}")
            try:
                with zipfile.ZipFile(window) as archive:  # type: ignore[arg-type]
                    entries = archive.infolist()
                places = self._places(window, entries)
                pickled = self._content(window, places, "data.pkl")
                order = self._content(window, places, "byteorder")
            except _UNREADABLE as error:
                raise self._incomplete(str(error) or type(error).__name__) from None
        if pickled is None:
            raise self._incomplete("it has no data.pkl")
        if order not in (None, b"little"):
            raise ValueError(f"{path} holds numbers in another order of bytes; save it again")
        try:
            self.content = SafeUnpickler(pickled).load()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _incomplete(self, why: str) -> ValueError:
        return ValueError(
            f"{self.path} is no complete torch file ({why}); it is damaged, or written by a torch "
            "before 1.6: use another checkpoint, or save it again with a newer torch"
        )

    def _places(self, window: _Window, entries: list[zipfile.ZipInfo]) -> dict[str, Checksum]:
        """Where each entry lies in the file, under its name without the archive's own.

        They follow each other; what lies inside another, or twice under one name, is no archive of
        torch's.
        """
        places: dict[str, Checksum] = {}
        position = 0
        for info in sorted(entries, key=lambda item: item.header_offset):
            name = info.filename.partition("/")[2]
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
                raise self._incomplete(f"{info.filename[:60]} is compressed or encrypted")
            window.seek(info.header_offset)
            header = window.read(_LOCAL_HEADER.size)
            signature, *_, name_size, extra_size = _LOCAL_HEADER.unpack(header)
            raw_name = window.read(name_size)
            first = info.header_offset + _LOCAL_HEADER.size + name_size + extra_size
            if signature != b"PK\x03\x04" or raw_name != _raw_name(info):
                raise self._incomplete(f"{info.filename[:60]} does not begin where it should")
            if (
                info.file_size != info.compress_size
                or info.header_offset < position
                or first + info.file_size > window.size
                or name in places
            ):
                raise self._incomplete(f"{info.filename[:60]} lies where another entry does")
            position = first + info.file_size
            places[name] = Checksum(self.path, self._start + first, info.file_size, info.CRC)
        self.has_checksums = any(place.crc32 for place in places.values())
        self._checksums = {
            name.removeprefix("data/"): place
            for name, place in places.items()
            if name.startswith("data/")
        }
        return places

    def _content(self, window: _Window, places: dict[str, Checksum], name: str) -> bytes | None:
        """A small entry, compared with its checksum."""
        if name not in places:
            return None
        place = places[name]
        window.seek(place.offset - self._start)
        data = window.read(place.num_bytes)
        if self.has_checksums and crc32(data) != place.crc32:
            raise self._incomplete(f"{name} has another checksum than it was written with")
        return data

    def piece(
        self, tensor: TensorRef, span: Span, first: int = 0, is_transposed: bool = False
    ) -> StoredPiece:
        """Where a span lies that begins with element ``first`` of a tensor.

        Raises:
            ValueError: the tensor is scattered over its storage, or reaches beyond it.
        """
        if not tensor.is_contiguous:
            if not tensor.is_transposed or first:
                raise ValueError(
                    f"{self.path} holds a tensor of shape {tensor.shape} with strides "
                    f"{tensor.strides}; save it again with contiguous tensors"
                )
            is_transposed = not is_transposed
        place = self._checksums.get(tensor.storage.key)
        if place is None:
            raise ValueError(f"{self.path} lacks the storage {tensor.storage.key}; it is damaged")
        width = dtypes.width(tensor.storage.dtype)
        end = max(tensor.end, tensor.offset + first + span.stop - span.start)
        if end > tensor.storage.size or tensor.storage.size * width != place.num_bytes:
            raise ValueError(
                f"{self.path} has {place.num_bytes} bytes of storage {tensor.storage.key}, of "
                f"which a tensor of shape {tensor.shape} wants {end * width}; it is damaged"
            )
        position = place.offset + (tensor.offset + first) * width
        checksum = place if self.has_checksums else None
        return StoredPiece(span, tensor.storage.dtype, self.path, position, is_transposed, checksum)

    def whole(self, tensor: TensorRef) -> StoredPiece:
        """Where all of a tensor lies."""
        return self.piece(tensor, Span.all_of(Region.whole(tensor.shape)))

    def numbers(self, tensor: TensorRef) -> np.ndarray:
        """A small tensor's values."""
        piece = self.whole(tensor)
        if piece.checksum is not None:
            piece.checksum.verify()
        with open_regular(self.path) as file:
            file.seek(piece.offset)
            return np.frombuffer(file.read(piece.num_bytes), dtypes.NUMPY[piece.dtype])


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")


class _Window:
    """Part of a file as a file."""

    def __init__(self, raw: BinaryIO, start: int, size: int) -> None:
        self._raw, self._start, self.size, self._position = raw, start, size, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, self.size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self._position)
        count = left if count < 0 else min(count, left)
        self._raw.seek(self._start + self._position)
        data = self._raw.read(count)
        self._position += len(data)
        return data
