# SPDX-License-Identifier: Apache-2.0
"""This project's checkpoints, written by a converter: whole tensors in files of limited size."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mindspeed_ms.config import AllConfig, to_yaml
from mindspeed_ms.formats import dtypes, own_format
from mindspeed_ms.formats.containers import mindspore_file, storage
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers.digest import digest_part
from mindspeed_ms.formats.own_format import WrittenFile, WrittenPiece
from mindspeed_ms.formats.source import Source
from mindspeed_ms.plan.region import Region, Span

MAX_FILE_BYTES = 4 << 30

Progress = Callable[[int], None]


@dataclass(slots=True)
class _Item:
    """A tensor to write."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    digest: int = 0

    @property
    def key(self) -> str:
        """Name in the file."""
        return f"{self.kind}.{self.name}" if self.kind else self.name

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * dtypes.width(self.dtype)


def write(
    source: Source,
    config: AllConfig,
    root: Path,
    progress: Progress,
    *,
    vocab_size: int | None = None,
    container: Literal["safetensors", "ckpt"] = "safetensors",
    with_optimizer: bool = True,
) -> Path:
    """Write a checkpoint and the marker; return its folder.

    Args:
        source: what is converted.
        config: the model, and what is known of its run.
        root: folder of checkpoints.
        progress: told the bytes of every tensor written.
        container: kind of the files.
        with_optimizer: write the optimizer's tensors too.
        vocab_size: tokens in use, None if unknown.
    """
    common = source.catalog.common
    iteration = int(common.get("iteration", 0))
    folder = storage.iteration_folder(root, iteration)
    folder.mkdir(parents=True, exist_ok=True)
    generation = storage.next_generation(folder)
    items = [
        _Item(name, kind, source.shape(name, kind), source.dtype(name, kind))
        for name, kind in source.all_tensors(with_optimizer)
        if kind != "main" or source.dtype(name) != "F32"
    ]
    name = f"config{generation}.yaml"
    described = {
        "config": config.to_dict(),
        "config_file": name,
        "is_tied": source.spec.is_tied,
        "vocab_size": vocab_size,
    }
    written: list[Path] = []
    try:
        files = []
        for number, group in enumerate(_groups(items)):
            written.append(folder / f"rank_{number:05d}{generation}.{container}")
            files.append(_write_file(source, group, written[-1], progress))
        written.append(folder / name)
        storage.write_text(folder / name, to_yaml(config))
        own_format.write_index(folder, own_format.build_index(files, _common(common, described)))
    except BaseException:
        if own_format.config_of(folder) != name:  # it was not the very last step that failed
            for path in written:
                path.unlink(missing_ok=True)
        raise
    storage.remove_leftovers(folder, {storage.INDEX, *(path.name for path in written)})
    storage.set_latest(root, iteration)
    return folder


def _write_file(source: Source, group: list[_Item], path: Path, progress: Progress) -> WrittenFile:
    """One file of a checkpoint."""
    partial = path.with_name(path.name + storage.PARTIAL)
    entries = [
        safetensors.Entry(item.key, item.dtype, item.shape, _reading(source, item, progress))
        for item in group
    ]
    if path.suffix == ".ckpt":
        record, places = mindspore_file.write_file(partial, entries, True)
    else:
        record, places = safetensors.write_file(partial, entries)
    storage.put_in_place(partial, path)
    pieces = [
        piece
        for item, stretches in zip(group, places, strict=True)
        for piece in _pieces(item, stretches)
    ]
    return WrittenFile(path.name, record, tuple(pieces))


def _reading(source: Source, item: _Item, progress: Progress) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array = source.read(item.name, item.kind)
        span = Span.all_of(Region.whole(item.shape))
        item.digest = digest_part(array, span, item.shape)
        progress(array.nbytes)
        return array

    return read


def _groups(items: list[_Item]) -> list[list[_Item]]:
    groups: list[list[_Item]] = [[]]
    size = 0
    for item in items:
        if groups[-1] and size + item.num_bytes > MAX_FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.num_bytes
    return groups


def _pieces(item: _Item, stretches: list[safetensors.Stretch]) -> list[WrittenPiece]:
    pieces, position = [], 0
    region = Region.whole(item.shape)
    for stretch in stretches:
        count = stretch.num_bytes // dtypes.width(item.dtype)
        pieces.append(
            WrittenPiece(
                name=item.key,
                shape=item.shape,
                dtype=item.dtype,
                key=item.key,
                span=Span(region, position, position + count),
                offset=stretch.offset,
                digest=item.digest if position == 0 else 0,
            )
        )
        position += count
    return pieces


def _common(common: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in common.items()
        if key not in ("files", "rng", "layout", "seal", "format", "version")
    }
    return {
        **kept,
        own_format.RUN: secrets.token_hex(8),
        "iteration": int(common.get("iteration", 0)),
        **described,
        "rng": [],
    }
