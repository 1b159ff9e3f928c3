# SPDX-License-Identifier: Apache-2.0
"""This project's format: one index, and a file of every rank that wrote something.

The index lists for every tensor its global shape and type, and for every piece the file, the place
in it, the region of the tensor and which of the region's elements; so any other layout can be read
from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_ms.files.checksum import Checksum
from mindspeed_ms.files.regular_file import is_regular, open_regular, require_regular
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.checkpoint_format import SourceHints
from mindspeed_ms.formats.containers import sealed_json, storage
from mindspeed_ms.formats.containers.new_file import FileRecord
from mindspeed_ms.plan.region import Region, Span

NAME = "mindspeed_ms.checkpoint"
VERSION = 1

RUN = "run"
"""Key of the index: which run saved it. A run that goes on from its newest checkpoint keeps it."""

UNHEALTHY = "unhealthy"
"""Key of the index: what happened to the numbers it holds; None: nothing."""

_MAX_INDEX_BYTES = 4 << 30
_HEAD_BYTES = 4096
_RUN = re.compile(rb'"run":"([0-9a-f]{1,64})"')
_UNHEALTHY = b'"unhealthy":"'


@dataclass(frozen=True, slots=True)
class WrittenPiece:
    """A piece as its writer reports it."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    dtype: str
    key: str
    """Name within the file."""
    span: Span
    offset: int
    digest: int
    """What the piece adds to the tensor's digest."""


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file as its writer reports it."""

    name: str
    record: FileRecord
    pieces: tuple[WrittenPiece, ...]


def build_index(files: Iterable[WrittenFile], common: dict[str, Any]) -> dict[str, Any]:
    """The index of a checkpoint.

    Raises:
        RuntimeError: pieces of a tensor that contradict each other.
    """
    listed: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for file in files:
        listed[file.name] = {"bytes": file.record.num_bytes, "crc32": file.record.crc32}
        for piece in file.pieces:
            entry = tensors.setdefault(
                piece.name,
                {"shape": list(piece.shape), "dtype": piece.dtype, "digest": 0, "pieces": []},
            )
            if (entry["shape"], entry["dtype"]) != (list(piece.shape), piece.dtype):
                raise RuntimeError(
                    f"{piece.name} is {entry['dtype']} {entry['shape']} on one rank and "
                    f"{piece.dtype} {list(piece.shape)} on another; the ranks run different models"
                )
            entry["digest"] += piece.digest
            entry["pieces"].append(_piece_to_json(file.name, piece))
    for entry in tensors.values():
        entry["digest"] = f"{entry['digest'] % (1 << 64):016x}"
    return {
        "format": NAME,
        "version": VERSION,
        # At the start, where they are found without reading all of it.
        RUN: common.get(RUN) or "",
        UNHEALTHY: common.get(UNHEALTHY),
        **{key: value for key, value in common.items() if key not in (RUN, UNHEALTHY)},
        "files": listed,
        "tensors": dict(sorted(tensors.items())),
    }


def _piece_to_json(file: str, piece: WrittenPiece) -> dict[str, Any]:
    value: dict[str, Any] = {"file": file, "key": piece.key, "offset": piece.offset}
    if not piece.span.region.is_whole(piece.shape):
        value["region"] = piece.span.region.to_json()
    if not piece.span.is_complete:
        value["range"] = [piece.span.start, piece.span.stop]
    return value


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write the index; with that the checkpoint exists."""
    storage.write_text(folder / storage.INDEX, sealed_json.dumps(index))


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a checkpoint.

    Raises:
        ValueError: it is damaged, or of a later version.
    """
    path = folder / storage.INDEX
    index = sealed_json.read(path, _MAX_INDEX_BYTES)
    if index.get("format") != NAME or index.get("version", 0) > VERSION:
        raise ValueError(
            f"{path} is of format {index.get('format')!r} version {index.get('version')}; this "
            f"version reads {NAME} up to version {VERSION}: update the package"
        )
    return index


def run_of(folder: Path) -> str | None:
    """Which run saved a checkpoint; None where that is not noted."""
    match = _RUN.search(_head(folder))
    return match[1].decode() if match else None


def is_healthy(folder: Path) -> bool:
    """Whether a checkpoint is of a run that had not diverged."""
    return _UNHEALTHY not in _head(folder)


def config_of(folder: Path) -> str | None:
    """Name of the configuration that belongs to a checkpoint; None where there is none."""
    try:
        return read_index(folder).get("config_file")
    except (ValueError, OSError):
        return None


def _head(folder: Path) -> bytes:
    """What is noted at the start of an index; nothing where there is none."""
    path = folder / storage.INDEX
    if not is_regular(path):
        return b""
    with open_regular(path) as file:
        return file.read(_HEAD_BYTES).partition(b'"tensors"')[0]


def read_catalog(folder: Path) -> Catalog:
    """What a checkpoint of this project holds; only the index is read.

    Raises:
        ValueError: the index is damaged, or a file is missing or has another size.
    """
    index = read_index(folder)
    files = {}
    for name, file in index["files"].items():
        path = storage.inside(folder, name)
        check_file(path, file["bytes"])
        files[name] = Checksum(path, 0, file["bytes"], file["crc32"])
    tensors = {
        name: StoredTensor(
            shape=tuple(entry["shape"]),
            dtype=entry["dtype"],
            pieces=[_piece_from_json(files, entry, piece) for piece in entry["pieces"]],
            digest=entry["digest"],
        )
        for name, entry in index.pop("tensors").items()
    }
    return Catalog(tensors, index, f"checkpoint {folder}")


def check_file(path: Path, num_bytes: int) -> None:
    """Make sure that a file has the size it should have.

    Raises:
        ValueError: it has not, or is missing.
    """
    try:
        size = require_regular(path)
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing, the checkpoint is damaged; choose another one with --ckpt-step"
        ) from None
    if size != num_bytes:
        raise ValueError(
            f"{path} has {size} bytes instead of {num_bytes}, the checkpoint is damaged; choose "
            "another one with --ckpt-step"
        )


def verify_file(path: Path, record: FileRecord, with_crc: bool) -> None:
    """Compare a file with what its writer noted.

    Raises:
        ValueError: size or checksum differ.
    """
    check_file(path, record.num_bytes)
    if with_crc:
        Checksum(path, 0, record.num_bytes, record.crc32).verify()


def _piece_from_json(
    files: dict[str, Checksum], entry: dict[str, Any], piece: dict[str, Any]
) -> StoredPiece:
    file = files[piece["file"]]
    region = (
        Region.from_json(piece["region"]) if "region" in piece else Region.whole(entry["shape"])
    )
    start, stop = piece.get("range", (0, region.size))
    offset = piece["offset"]
    if not all(type(number) is int for number in (start, stop, offset)):
        raise TypeError("places are whole numbers")
    return StoredPiece(Span(region, start, stop), entry["dtype"], file.path, offset, checksum=file)


class OwnFormat:
    """This project's checkpoints behind ``CheckpointFormat``."""

    name = "mindspeed_ms"

    def is_at(self, path: Path) -> bool:
        """A folder with an index or a rank's file, or such a file of one."""
        if path.is_dir():
            return any(storage.is_own(item.name) for item in path.iterdir())
        is_part = path.parent.name.startswith("iter_") or (path.parent / storage.INDEX).is_file()
        return storage.is_own(path.name) and is_part and path.is_file()

    def missing(self, path: Path) -> str | None:
        """The index is written last."""
        if path.is_dir() and not is_regular(path / storage.INDEX):
            return f"{storage.INDEX}, which is written last"
        return None

    def open(self, path: Path, hints: SourceHints) -> Catalog:
        """Read the index."""
        if path.is_file():
            raise ValueError(f"{path} is one file of a checkpoint; name its folder {path.parent}")
        return read_catalog(path)


FORMAT = OwnFormat()
