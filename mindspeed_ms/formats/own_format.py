"""This project's format: one index, and a file of every rank that wrote something.

The index lists for every tensor its global shape and type, and for every piece the file, the place
in it, the region of the tensor and which of the region's elements; so any other layout can be read
from it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.containers import native, storage
from mindspeed_ms.formats.containers.new_file import FileRecord
from mindspeed_ms.plan.region import Region, Span

FORMAT = "mindspeed_ms.checkpoint"
VERSION = 1


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
        "format": FORMAT,
        "version": VERSION,
        **common,
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
    body = json.dumps(index, separators=(",", ":"))
    seal = f"{zlib.crc32(body.encode()):08x}"
    storage.write_text(folder / storage.INDEX, body[:-1] + f',"seal":"{seal}"}}')


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a checkpoint.

    Raises:
        ValueError: it is damaged, or of a later version.
    """
    path = folder / storage.INDEX
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        index = json.loads(text)
        body, _, tail = text.rpartition(',"seal":"')
        is_sound = f"{zlib.crc32((body + '}').encode()):08x}" == tail[:8]
    except ValueError:
        index, is_sound = {}, False
    if not is_sound:
        raise ValueError(f"{path} is damaged; choose another checkpoint with --ckpt-step")
    if index.get("format") != FORMAT or index.get("version", 0) > VERSION:
        raise ValueError(
            f"{path} is of format {index.get('format')!r} version {index.get('version')}; this "
            f"version reads {FORMAT} up to version {VERSION}: update the package"
        )
    return index


def read_catalog(folder: Path) -> Catalog:
    """What a checkpoint of this project holds; only the index is read.

    Raises:
        ValueError: the index is damaged, or a file is missing or has another size.
    """
    index = read_index(folder)
    for name, file in index["files"].items():
        check_file(folder / name, file["bytes"])
    tensors = {
        name: StoredTensor(
            shape=tuple(entry["shape"]),
            dtype=entry["dtype"],
            pieces=[_piece_from_json(folder, entry, piece) for piece in entry["pieces"]],
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
    if not path.is_file():
        raise ValueError(
            f"{path} is missing, the checkpoint is damaged; choose another one with --ckpt-step"
        )
    size = path.stat().st_size
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
    if with_crc and native.crc32_of_file(path, record.num_bytes) != record.crc32:
        raise ValueError(
            f"{path} has another checksum than it was written with, it is damaged; choose another "
            "checkpoint with --ckpt-step"
        )


def _piece_from_json(folder: Path, entry: dict[str, Any], piece: dict[str, Any]) -> StoredPiece:
    region = (
        Region.from_json(piece["region"]) if "region" in piece else Region.whole(entry["shape"])
    )
    start, stop = piece.get("range", (0, region.size))
    return StoredPiece(
        Span(region, start, stop), entry["dtype"], folder / piece["file"], piece["offset"]
    )


def num_bytes_of(tensors: Iterable[StoredTensor]) -> int:
    """Bytes of some tensors."""
    return sum(tensor.num_bytes for tensor in tensors)
