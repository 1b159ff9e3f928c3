# SPDX-License-Identifier: Apache-2.0
"""Hugging Face models as catalogs, and written. What is where is the families' business."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.config import AllConfig
from mindspeed_ms.files.checksum import Checksum
from mindspeed_ms.formats import dtypes, names
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.checkpoint_format import SourceHints
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.formats.huggingface_files import (
    CONFIG,
    INDEX,
    SINGLE,
    find_tensors,
    is_model,
    missing_files,
    read_config,
    shard_name,
    written_before,
)
from mindspeed_ms.formats.huggingface_packed import Packed
from mindspeed_ms.formats.source import Source
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place
from mindspeed_ms.models.families.registry import family_of_type
from mindspeed_ms.plan.region import Span

MAX_FILE_BYTES = 5 << 30

Progress = Callable[[int], None]


# --- reading ----------------------------------------------------------------------------------


def read_catalog(folder: Path) -> Catalog:
    """What a model's folder holds; tensors stay in their files.

    Raises:
        ValueError: another kind of model, or tensors are missing or left over.
    """
    theirs = read_config(folder)
    try:
        family = family_of_type(theirs.get("model_type"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    files = find_tensors(folder)
    stored = {key.removeprefix(family.prefix): place for key, place in files.places.items()}
    seals = {key.removeprefix(family.prefix): seal for key, seal in files.seals.items()}
    try:
        packed = Packed.of(theirs, stored)
        absent = family.absent(theirs, stored)
        config = family.config({k: v for k, v in theirs.items() if k not in absent})
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    places = list(family.places_of(config, theirs["vocab_size"]))
    catalog = Catalog({}, {}, f"Hugging Face model {folder}", files.notes)
    copies = {place.theirs for place in places if place.is_copy}
    catalog.notes += packed.notes
    present = packed.names_of(stored)
    _check_names(catalog, {place.theirs for place in places} - copies, present - copies)
    for place in places:
        if place.is_copy:
            continue
        if packed.holds(place.theirs):
            packed.add(catalog, place)
            continue
        file, found = stored[place.theirs]
        _add(catalog, place, file, found, seals.get(place.theirs))
    model = config.model_config
    catalog.common.update(
        {
            "iteration": 0,
            "is_tied": not model.untie_embeddings_and_output_weights,
            "vocab_size": theirs["vocab_size"],
            "huggingface": theirs,
            "huggingface_absent": sorted(absent),
        }
    )
    return catalog


class HuggingFaceFormat:
    """Hugging Face models behind ``CheckpointFormat``."""

    name = "huggingface"

    def is_at(self, path: Path) -> bool:
        """A folder with config.json and weights, or a file of some."""
        return is_model(path)

    def missing(self, path: Path) -> str | None:
        """A file that the index names."""
        return missing_files(path)

    def open(self, path: Path, hints: SourceHints) -> Catalog:
        """Read configuration, index and headers."""
        return read_catalog(path)


FORMAT = HuggingFaceFormat()

_HEAD = re.compile(r"^(lm_head|embed_out|output)\.weight$")
_FOLLOWS = re.compile(
    rf"\.((attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq)$|{_HEAD.pattern}"
)
"""Buffers that follow from the configuration, and the copy of a tied head."""


def _check_names(catalog: Catalog, known: set[str], present: set[str]) -> None:
    left = {key for key in present - known if not _FOLLOWS.search(key)}
    for key in filter(_HEAD.search, present - known):
        catalog.notes.append(f"{catalog.source}: {key} not read, {CONFIG} ties the head")
    missing = known - present
    if left or missing:
        raise ValueError(
            f"{catalog.source} does not correspond to its config.json; missing: "
            f"{sorted(missing)[:8]}, unknown: {sorted(left)[:8]}"
        )


def _add(
    catalog: Catalog,
    place: Place,
    file: Path,
    stored: safetensors.Place,
    checksum: Checksum | None,
) -> None:
    if stored.shape != place.stored_shape:
        raise ValueError(
            f"{file}: {place.theirs} has shape {list(stored.shape)}, its config.json says "
            f"{list(place.stored_shape)}"
        )
    offset = stored.offset
    if place.part is not None:
        offset += place.part[0] * place.region.size * dtypes.width(stored.dtype)
    shape = tuple(high for _, high in place.region.bounds)
    tensor = catalog.tensors.setdefault(place.name, StoredTensor(shape, stored.dtype))
    tensor.shape = tuple(max(a, b) for a, b in zip(tensor.shape, shape, strict=True))
    span = Span.all_of(place.region)
    tensor.pieces.append(
        StoredPiece(span, stored.dtype, file, offset, place.is_transposed, checksum)
    )


# --- writing ----------------------------------------------------------------------------------


def write(
    source: Source,
    config: AllConfig,
    family: Family,
    root: Path,
    progress: Progress,
    *,
    vocab_size: int | None = None,
    original: Mapping[str, Any] | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Path:
    """Write a model's folder; return it.

    Args:
        source: what is converted.
        config: the model.
        family: the kind of model there.
        root: the folder.
        progress: told the bytes of every tensor written.
        vocab_size: tokens in use, None: all rows.
        original: ``config.json`` of the model that this one came from; what it says beside is kept.
        max_file_bytes: of one file, unless a tensor alone is larger.
    """
    rows = vocab_size or source.shape(names.EMBEDDING)[0]
    source.rows = rows
    root.mkdir(parents=True, exist_ok=True)
    groups = list(_groups(source, family.places_of(config, rows), max_file_bytes))
    weight_map, total = {}, 0
    with storage.NewFiles() as files:
        for number, group in enumerate(groups, start=1):
            name = SINGLE if len(groups) == 1 else shard_name(number, len(groups))
            entries = [
                safetensors.Entry(
                    family.full_name(places[0].theirs),
                    source.dtype(places[0].name),
                    places[0].stored_shape,
                    _reading(source, places, progress),
                )
                for places in group
            ]
            safetensors.write_file(
                files.partial(root / name), entries, {"format": "pt"}, is_sealed=True
            )
            total += sum(math.prod(entry.shape) * dtypes.width(entry.dtype) for entry in entries)
            weight_map.update(dict.fromkeys((entry.key for entry in entries), name))
        if len(groups) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            files.write_text(root / INDEX, json.dumps(index, indent=2))
        dtype = dtypes.WORDS[source.dtype(names.EMBEDDING)]
        written = with_dtype(described(family, config, rows, original), dtype, original)
        files.write_text(root / CONFIG, json.dumps(written, indent=2))
        files.replaces(written_before(root))
    return root


def described(
    family: Family, config: AllConfig, rows: int, original: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``config.json`` of a model: that of its origin, with the keys changed that differ."""
    written = family.config_json(config, rows)
    if original is None or original.get("model_type") != family.model_type:
        return written
    before = family.config_json(family.config(original), original["vocab_size"])
    changed = {key: value for key, value in written.items() if before.get(key) != value}
    plain = {key: value for key, value in original.items() if key != "quantization_config"}
    return {**plain, **changed}


def with_dtype(
    written: dict[str, Any], dtype: str, original: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The type of the weights under the key that the origin has for it; none where it means that.

    A file that names no type means float32.
    """
    for key in ("dtype", "torch_dtype"):
        if written.get(key) is not None:
            return {**written, key: dtype}
    is_meant = original is not None and dtype == "float32"
    return written if is_meant else {**written, "torch_dtype": dtype}


def _groups(
    source: Source, places: Iterator[Place], max_file_bytes: int
) -> Iterator[list[list[Place]]]:
    """Places by file, and by tensor: some of theirs stack several of ours."""
    group: list[list[Place]] = []
    size = 0
    for tensor in _by_tensor(places):
        count = sum(place.region.size for place in tensor)
        count *= dtypes.width(source.dtype(tensor[0].name))
        if group and size + count > max_file_bytes:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += count
    yield group


def _by_tensor(places: Iterator[Place]) -> Iterator[list[Place]]:
    by_name: dict[str, list[Place]] = {}
    for place in places:
        by_name.setdefault(place.theirs, []).append(place)
    for tensor in by_name.values():
        yield sorted(tensor, key=lambda place: place.part or (0, 1))


def _reading(
    source: Source, places: Sequence[Place], progress: Progress
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        first = places[0]
        if len(places) == 1:
            return _read(source, first, progress)
        dtype = dtypes.NUMPY[source.dtype(first.name)]
        result = np.empty((len(places), *first.shape), dtype)
        room = np.empty(first.region.size, dtype)  # the tensor before is still being written
        for number, place in enumerate(places):
            result[number] = _read(source, place, progress, room)
        return result

    return read


def _read(
    source: Source, place: Place, progress: Progress, room: np.ndarray | None = None
) -> np.ndarray:
    array = source.read(place.name, "", Span.all_of(place.region), room)
    progress(array.nbytes)
    if place.is_transposed:
        result = np.empty(place.shape, array.dtype)
        dtypes.copy(result, array.reshape(place.region.shape).T)
        return result
    return array.reshape(place.shape)
