# SPDX-License-Identifier: Apache-2.0
"""Which files of a Hugging Face folder are the model: the index decides, and config.json.

What they name and is not there is an error; what they do not name is left aside with a line. A
folder is often half a download, or holds the same weights a second time in another form.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_ms.files.checksum import Checksum
from mindspeed_ms.files.regular_file import is_regular, read_json, real_path
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers.torch_file import TensorRef, TorchFile

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_SINGLE = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
"""Names before safetensors; what is written has the newer ones."""
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")
_OTHER_FORMS = ("pytorch_model*.bin", "*.pth", "*.gguf", "*.h5", "*.msgpack")
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The tensors of a model's folder."""

    places: dict[str, tuple[Path, safetensors.Place]]
    """Key of a tensor -> its file, and where it lies there."""
    seals: dict[str, Checksum]
    """Key of a tensor -> checksum of bytes around it, where the file carries one."""
    notes: list[str] = field(default_factory=list)
    """What was left aside, a line each."""


def is_model(path: Path) -> bool:
    """Whether a folder describes a Hugging Face model and names or holds weights of it."""
    if path.is_file():
        return path.suffix == ".safetensors" and is_regular(path.parent / CONFIG)
    if not is_regular(path / CONFIG):
        return False
    patterns = (INDEX, TORCH_INDEX, "*.safetensors", *_OTHER_FORMS)
    return any(any(path.glob(pattern)) for pattern in patterns)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``, by its folder or its own path.

    Raises:
        ValueError: it is missing, or is not JSON.
    """
    if folder.name == CONFIG:
        folder = folder.parent
    if folder.is_file():
        raise ValueError(f"{folder} is one file of a model; name its folder {folder.parent}")
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} has no {CONFIG}; name the folder of a Hugging Face model")
    return read_json(folder / CONFIG)


def missing_files(folder: Path) -> str | None:
    """What a folder lacks, in words, by the names of its files; None if nothing.

    An index that cannot be read tells nothing; the damage shows when the model is opened.
    """
    if folder.is_file():
        return None
    try:
        _named(folder)
    except (ValueError, OSError) as error:
        return str(error) if isinstance(error, _MissingError) else None
    return None


class _MissingError(ValueError):
    """A file of a model is not there."""


def find_tensors(folder: Path) -> ModelFiles:
    """The tensors of a model, and where they lie.

    Raises:
        ValueError: a file or a tensor that is named is not there, or a file is damaged.
        OSError: a file cannot be read.
    """
    names, weight_map, index = _named(folder)
    notes = []
    unnamed = sorted(item.name for item in folder.glob("*.safetensors") if item.name not in names)
    if unnamed:
        source = index if weight_map is not None else "the model"
        notes.append(f"{folder}: {_listed(unnamed)} not read, {source} does not name it")
    places: dict[str, tuple[Path, safetensors.Place]] = {}
    left = []
    seals = {}
    for name in names:
        path = _path(folder, name)
        read = _read_torch if name.endswith(".bin") else _read_safetensors
        for key, place, seal in read(path):
            if weight_map is not None and weight_map.get(key) != name:
                left.append(f"{key} of {name}")
                continue
            if key in places:
                raise ValueError(
                    f"{key} lies in {places[key][0].name} and in {name} of {folder}, which has no "
                    f"{INDEX} to decide; remove one of the files"
                )
            places[key] = (path, place)
            if seal is not None:
                seals[key] = seal
    gone = sorted((weight_map or {}).keys() - places.keys())
    if gone:
        assert weight_map is not None, "only an index names tensors"
        raise ValueError(
            f"{folder / index} says that {gone[0]} lies in {weight_map[gone[0]]}, but it does not"
            f"{f' (and {len(gone) - 1} more)' if gone[1:] else ''}; copy both again"
        )
    if left:
        notes.append(f"{folder}: {_listed(left)} not read, {index} names another place or none")
    return ModelFiles(places, seals, notes)


Held = Iterator[tuple[str, safetensors.Place, Checksum | None]]
"""Key of a tensor, where it lies in its file, and the checksum of bytes around it."""


def _read_safetensors(path: Path) -> Held:
    """What a file holds."""
    header, metadata = safetensors.read_header(path)
    seal = safetensors.seal_of(path, header, metadata)
    for key, place in header.items():
        yield key, place, seal


def _read_torch(path: Path) -> Held:
    """What a file of ``torch.save`` holds.

    Raises:
        ValueError: it is no state dict of a model.
    """
    file = TorchFile(path)
    if not isinstance(file.content, Mapping) or not file.content:
        raise ValueError(f"{path} holds no state dict; name the folder of a Hugging Face model")
    for key, tensor in file.content.items():
        if not isinstance(key, str) or not isinstance(tensor, TensorRef):
            raise ValueError(f"{path}: {str(key)[:80]} is no tensor; save the state dict alone")
        piece = file.whole(tensor)
        if piece.is_transposed and 1 not in tensor.shape:
            raise ValueError(
                f"{path}: {key} lies column by column; save the model with contiguous tensors"
            )
        yield key, safetensors.Place(piece.dtype, tensor.shape, piece.offset), piece.checksum


def _named(folder: Path) -> tuple[list[str], dict[str, str] | None, str]:
    """The files that make up the model, what the index says if there is one, and its name.

    Raises:
        _MissingError: one is not there.
        ValueError: the index is damaged, or nothing says which file is the model.
    """
    weight_map, index = None, INDEX
    has_new = is_regular(folder / SINGLE) or any(folder.glob("*.safetensors"))
    if not has_new and not os.path.lexists(folder / INDEX):
        index = TORCH_INDEX
    if os.path.lexists(folder / index):  # a link to nowhere is no missing index
        weight_map = _read_index(folder / index)
        names = sorted(set(weight_map.values()))
    elif is_regular(folder / SINGLE):
        names = [SINGLE]
    elif index == TORCH_INDEX and is_regular(folder / TORCH_SINGLE):
        names = [TORCH_SINGLE]
    else:
        names = _without_index(folder)
    gone = [name for name in names if not is_regular(_path(folder, name))]
    if gone:
        named = index if weight_map is not None else "its neighbours' names"
        raise _MissingError(
            f"{folder / gone[0]}{f' and {len(gone) - 1} more' if gone[1:] else ''}, which {named} "
            "asks for; copy or download it again"
        )
    return names, weight_map, index


def _read_index(path: Path) -> dict[str, str]:
    end = ".safetensors" if path.name == INDEX else ".bin"
    weight_map = read_json(path).get("weight_map")
    is_sound = isinstance(weight_map, Mapping) and all(
        isinstance(name, str) and name.endswith(end) for name in weight_map.values()
    )
    if not is_sound or not weight_map:
        raise ValueError(f"{path} has no weight_map of tensors to {end} files; copy it again")
    return dict(weight_map)


def _without_index(folder: Path) -> list[str]:
    """Shards tell by their names how many there are; else there must be one file."""
    names = sorted(item.name for item in folder.glob("*.safetensors"))
    shards = {(match[1], match[3]) for name in names if (match := _SHARD.fullmatch(name))}
    if len(shards) == 1:
        ((stem, count),) = shards
        return [shard_name(number, int(count), stem) for number in range(1, int(count) + 1)]
    if len(names) == 1:
        return names
    if names:
        raise ValueError(
            f"{folder} holds {_listed(names)} and no {INDEX} that says which are the model; add "
            "the index or remove what is not meant"
        )
    others = [item.name for pattern in _OTHER_FORMS for item in folder.glob(pattern)]
    found = f"; {_listed(others)} are of a form that is not read" if others else ""
    raise _MissingError(
        f"{folder / SINGLE}{found}: download it, or save the model with safe_serialization=True"
    )


def shard_name(number: int, count: int, stem: str = "model") -> str:
    """Name of one of several files, counted from 1."""
    return f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def written_before(folder: Path) -> list[Path]:
    """Files of a model in this folder that a new one replaces, the one that names it first."""
    shards = (item for item in folder.glob("model-*.safetensors") if _SHARD.fullmatch(item.name))
    return [folder / CONFIG, folder / INDEX, folder / SINGLE, *sorted(shards)]


def _path(folder: Path, name: str) -> Path:
    """A file that the index names; links may lead into the download cache's own store.

    Raises:
        ValueError: it would lie outside.
    """
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ValueError(f"{folder / INDEX} names a file outside of its folder ({name!r:.80})")
    if path.is_symlink():
        target = real_path(path)
        store = real_path(folder).parent.parent / "blobs"
        if not (target.is_relative_to(real_path(folder)) or target.is_relative_to(store)):
            raise ValueError(
                f"{path} is a link to {target}, outside of the model's folder; copy the file itself"
            )
    return path


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more
