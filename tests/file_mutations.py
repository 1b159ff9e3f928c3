# SPDX-License-Identifier: Apache-2.0
"""Damages copies of small checkpoints of every format, and says what reading them gives."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import conversion_killer as conversions
import numpy as np

from mindspeed_ms.formats.catalog import TensorReader
from mindspeed_ms.formats.containers import mindspore_file
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.training.conversion import ConvertOptions, open_source

MEGATRON_CORE = Path(__file__).parent / "data" / "megatron_core"
COPIED = {"torch": "dense/torch", "torch_dist": "dense/torch_dist", "experts": "moe/torch"}
WITHOUT_CHECKSUMS = ("huggingface-shards", "mindspore-foreign")
"""Files of others, which carry none: a changed number in them is another number, and no reader can
know. Nor can one know whether config.json was meant."""
FORMATS = (*conversions.TARGETS, *COPIED, *WITHOUT_CHECKSUMS)


def make(root, kind):
    """A small checkpoint; its folder."""
    target = root / kind
    if kind in COPIED:
        shutil.copytree(MEGATRON_CORE / COPIED[kind], target)
        return target
    catalog = conversions.tiny_model(root / f"{kind}.source", 1.0)
    if kind == "huggingface-shards":
        conversions.converted(catalog, target, conversions.TARGETS["huggingface"])
        _cut_in_two(target)
    elif kind == "mindspore-foreign":
        _without_description(catalog, target)
    else:
        conversions.converted(catalog, target, conversions.TARGETS[kind])
    return target


def _cut_in_two(folder):
    """Two files and an index, as large models have them."""
    whole = folder / "model.safetensors"
    places, _ = safetensors.read_header(whole)
    data = whole.read_bytes()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {}
    for number, name in enumerate(names):
        entries = []
        for key, place in list(places.items())[number::2]:
            array = np.frombuffer(data, np.float32, place.num_bytes // 4, place.offset)
            entries.append(safetensors.Entry(key, place.dtype, place.shape, array))
            weight_map[key] = name
        safetensors.write_file(folder / name, entries, {"format": "pt"})
    text = safetensors.json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
    whole.unlink()


def _without_description(catalog, target):
    """As the predecessor writes it: files only, without checksums."""
    with TensorReader() as reader:
        entries = [
            safetensors.Entry(key, tensor.dtype, tensor.shape, reader.read(tensor))
            for key, tensor in catalog.tensors.items()
        ]
    (target / "rank_0").mkdir(parents=True)
    mindspore_file.write_file(target / "rank_0" / "network_rank_0-0_7.ckpt", entries)


def opened(target, kind):
    """A checkpoint's catalog; what does not describe its model is described beside."""
    options = ConvertOptions()
    if kind == "mindspore-foreign":
        options.model_config = target.with_name("model.yaml")
        options.model_config.write_text(json.dumps({"model_config": conversions.MODEL}))
    return open_source(target, options)[0]


def view(target, kind):
    """All that a reader takes from a checkpoint: tensors, and what is known beside them."""
    catalog = opened(target, kind)
    with TensorReader() as reader:
        arrays = {name: reader.read(tensor) for name, tensor in catalog.tensors.items()}
    aside = ("seal", "files")
    common = {key: value for key, value in catalog.common.items() if key not in aside}
    return arrays, common, any(note.startswith("WARNING") for note in catalog.notes)


@dataclass(frozen=True)
class Mutation:
    """One damage."""

    what: str
    path: Path
    """In the checkpoint's folder."""
    is_visible: bool
    """Whether the format can notice it."""


def damage(folder, kind, seed):
    """Damage a checkpoint in place."""
    rng = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(paths)
    what = rng.choice(_KINDS)
    data = bytearray(path.read_bytes())
    place = rng.randrange(max(1, len(data)))
    if what == "missing":
        path.unlink()
    elif what == "truncated":
        path.write_bytes(data[:place])
    elif what == "longer":
        path.write_bytes(data + rng.randbytes(rng.randrange(1, 100)))
    else:
        place = _CHANGES[what](data, rng, place)
        path.write_bytes(data)
    name = path.relative_to(folder)
    return Mutation(f"{what} at {place}", name, _is_visible(kind, path, data, place, what))


def _flip(data, rng, place):
    if data:
        data[place] ^= 1 << rng.randrange(8)
    return place


def _flip_in_head(data, rng, place):
    return _flip(data, rng, place % min(len(data), 300) if data else 0)


def _flip_in_tail(data, rng, place):
    return _flip(data, rng, len(data) - 1 - place % min(len(data), 300) if data else 0)


def _zeros(data, rng, place):
    size = rng.randrange(1, 64)
    data[place : place + size] = bytes(len(data[place : place + size]))
    return place


def _swap(data, rng, place):
    """Two blocks change places."""
    size = rng.randrange(1, 64)
    other = rng.randrange(max(1, len(data)))
    low, high = sorted((place, other))
    if low + size <= high and high + size <= len(data):
        first = bytes(data[low : low + size])
        data[low : low + size] = data[high : high + size]
        data[high : high + size] = first
    return low


def _digit(data, rng, place):
    """A digit of a text becomes another one."""
    digits = [at for at in range(min(len(data), 4000)) if 48 <= data[at] <= 57]
    if digits:
        place = rng.choice(digits)
        data[place] = rng.choice(b"0123456789")
    return place


_CHANGES = {
    "flip": _flip,
    "flip in head": _flip_in_head,
    "flip in tail": _flip_in_tail,
    "zeros": _zeros,
    "swap": _swap,
    "digit": _digit,
}
_KINDS = (*_CHANGES, *_CHANGES, "missing", "truncated", "longer")


def _is_visible(kind, path, data, place, what):
    if path.name == "config.json":
        return False
    if kind not in WITHOUT_CHECKSUMS or what in ("missing", "truncated", "longer"):
        return True
    if path.suffix == ".safetensors":
        return place < 8 + int.from_bytes(data[:8], "little")
    return path.suffix == ".json"


def outcome(folder, kind, sound, mutation):
    """``refused``, ``named``, ``equal`` or ``other``; anything else is raised.

    Names and shapes that differ are refused by whoever loads, because the model has others.
    """
    try:
        arrays, common, is_warned = view(folder, kind)
    except (ValueError, OSError) as error:
        assert "\n" not in str(error), error
        return "refused"
    known, known_common, was_warned = sound
    if {name: a.shape for name, a in arrays.items()} != {n: a.shape for n, a in known.items()}:
        return "refused"
    if any(not np.array_equal(arrays[name], known[name]) for name in known):
        return "other"
    if common == known_common:
        return "equal"
    return "named" if is_warned and not was_warned else "other"
