# SPDX-License-Identifier: Apache-2.0
"""From the name of a model to its files and its description; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.yaml_reader import read_yaml
from mindspeed_ms.formats import companions, huggingface
from mindspeed_ms.formats.find import Found, find_checkpoint, open_checkpoint
from mindspeed_ms.models.families.registry import family_of, family_of_type
from mindspeed_ms.toolkit import hub
from mindspeed_ms.training.checkpoint_config import config_of, is_origin, spec_of

CONFIG = "config.json"
WEIGHTS = (
    "*.safetensors",
    "*.ckpt",
    "latest_checkpointed_iteration.txt",
    "iter_*",
    "mp_rank_*",
    "rank_*",
    ".metadata",
    "index.json",
)
"""What shows that a folder holds weights of some format."""
_INSTEAD = "give a local folder, or AutoModel.from_config(config) for random weights"
_MINDFORMERS = {
    "GPT2Config": "gpt2",
    "LlamaConfig": "llama",
    "PanguAlphaConfig": "gpt_pangu",
}


@dataclass(frozen=True, slots=True)
class Located:
    """A description of a model."""

    name: str
    """As the user wrote it; the path where files were found."""
    values: Mapping[str, Any]
    """``config.json``, or what it would be."""
    folder: Path | None = None
    """Where files lie; None for a preset."""
    is_mindformers: bool = False
    """The values are a ``model_config`` block of MindFormers."""


def locate(name: str | os.PathLike[str], presets: Mapping[str, Mapping[str, Any]]) -> Located:
    """The description of a model: in a file, a folder of any format, or by the name of a size.

    Args:
        name: path or name.
        presets: name of a size -> ``config.json``.

    Raises:
        OSError: nothing is found; says where was looked and what sizes there are.
        ValueError: what is found describes no model.
    """
    path = Path(hub.checked_name(name))
    if path.is_file():
        return _of_file(path)
    folder = _folder_of(os.fspath(name), (CONFIG, "*.yaml", *WEIGHTS))
    preset = presets.get(os.fspath(name))
    is_bare = folder is not None and not _describes(folder)
    if folder is not None and not (is_bare and preset is not None):
        return _of_folder(folder, os.fspath(name))
    if preset is not None:  # what lies there may be weights alone, named after the size
        return Located(os.fspath(name), preset)
    hub.folder_of(name, (CONFIG, "*.safetensors", "*.ckpt"), _sizes(presets))
    raise AssertionError("a folder without a usable file was found twice")


def _sizes(presets: Mapping[str, Mapping[str, Any]]) -> str:
    return f"give a local folder, or one of the sizes {', '.join(presets)}"


def _folder_of(name: str, wanted: tuple[str, ...]) -> Path | None:
    """The first place with files of this very model.

    A family's folder is shared by its sizes: there only files that carry the name count.
    """
    family = hub.family_of(name)
    shared = Path(hub.DOWNLOADS) / family
    for place in hub.places(name):
        patterns = wanted
        if place == shared and name != family:
            patterns = (f"{name}.yaml", f"{name}.ckpt")
        if place.is_dir() and any(next(place.glob(pattern), None) for pattern in patterns):
            return place
    return None


def find_weights(name: str | os.PathLike[str]) -> Found:
    """The checkpoint that a name means, of any format.

    Raises:
        OSError: there is none; says where was looked.
        ValueError: there are files that are incomplete.
    """
    path = Path(hub.checked_name(name))
    if not path.is_file():
        text = os.fspath(name)
        folder = _folder_of(text, WEIGHTS) or _folder_of(text, (CONFIG,))
        if folder is None:
            folder = hub.folder_of(name, (CONFIG, *WEIGHTS[:2]), _INSTEAD)
        single = folder / f"{path.name}.ckpt"
        path = single if single.is_file() else folder
    found = find_checkpoint(path)
    if found is None:
        raise OSError(
            f"{path} holds no weights; files wanted: {', '.join(WEIGHTS[:3])}; nothing is "
            f"downloaded: {_INSTEAD}"
        )
    return found


def _of_file(path: Path) -> Located:
    if path.suffix in (".yaml", ".yml", ".json"):
        content = read_yaml(path)
        block = _mindformers_block(content)
        if block is not None:
            return _of_block(os.fspath(path), block, path.parent)
        if "model_type" in content:
            return Located(os.fspath(path), content, path.parent)
        return Located(os.fspath(path), described(config_of({"config": content})), path.parent)
    return _of_checkpoint(path)


def _describes(folder: Path) -> bool:
    """Whether files of a folder say what model it is; a ``.ckpt`` alone does not."""
    files = (CONFIG, "*.yaml", *(name for name in WEIGHTS if name not in WEIGHTS[:2]))
    described = ("description.json", f"{companions.FOLDER}/{CONFIG}")
    return any(next(folder.glob(name), None) for name in (*files, *described))


def _of_folder(folder: Path, name: str) -> Located:
    if (folder / CONFIG).is_file():
        return Located(os.fspath(folder), read_yaml(folder / CONFIG), folder)
    stem = Path(name).name
    files = sorted(folder.glob("*.yaml"))
    named = [path for path in files if path.stem == stem] or (files if len(files) == 1 else [])
    for path in named:
        block = _mindformers_block(read_yaml(path))
        if block is not None:
            return _of_block(os.fspath(folder), block, folder)
    return _of_checkpoint(folder)


def _of_checkpoint(path: Path) -> Located:
    found = find_checkpoint(path)
    if found is None:
        raise OSError(
            f"{path} holds neither a description of a model ({CONFIG}, a .yaml) nor a checkpoint; "
            f"{_INSTEAD}"
        )
    common = open_checkpoint(found, spec_of).common
    if found.kind == "huggingface":
        return Located(os.fspath(path), common["huggingface"], path)
    origin = common.get("huggingface") or companions.origin_config(path)
    values = described(config_of(common), common.get("vocab_size"), origin)
    return Located(os.fspath(path), values, path)


def described(
    config: AllConfig,
    vocab_size: int | None = None,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """``config.json`` of an engine's configuration; its own sections where no family holds it.

    Args:
        config: the configuration.
        vocab_size: tokens in use.
        origin: ``config.json`` of the hub's model that it may come from.
    """
    model = config.model_config
    if origin is not None and is_origin(origin, config):
        family = family_of_type(origin["model_type"])
        rows = min(origin["vocab_size"], model.vocab_size)
        values = huggingface.described(family, config, rows, origin)
        return huggingface.with_dtype(values, model.params_dtype, origin)
    rows = vocab_size or config.dataset_config.vocab_size or model.vocab_size
    try:
        values = family_of(config).config_json(config, rows)
    except ValueError:
        values = {
            "model_type": "mindspeed_ms",
            **{key: value for key, value in model.to_dict().items() if value is not None},
            "vocab_size": rows,
        }
        if config.moe_config.is_moe:
            values["moe_config"] = config.moe_config.to_dict()
    if model.params_dtype != "float32":
        values["dtype"] = model.params_dtype
    return values


def _of_block(name: str, block: Mapping[str, Any], folder: Path) -> Located:
    """A ``model_config`` block: of MindFormers, or written by ``save_pretrained``."""
    rest = {key: value for key, value in block.items() if key != "type"}
    if "model_type" in rest:
        return Located(name, rest, folder)
    kind = block.get("type")
    if kind not in _MINDFORMERS:
        raise ValueError(f"model_config.type is {kind!r}; there are {', '.join(_MINDFORMERS)}")
    return Located(name, {"model_type": _MINDFORMERS[kind], **rest}, folder, is_mindformers=True)


def _mindformers_block(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ``model_config`` block of MindFormers' YAML."""
    model = content.get("model")
    block = model.get("model_config") if isinstance(model, Mapping) else None
    return block if isinstance(block, Mapping) else None
