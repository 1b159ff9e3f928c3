"""Which checkpoint a path means, and of which format it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mindspeed_ms.formats import (
    huggingface,
    megatron,
    mindspore_dirs,
    own_format,
    peft,
    torch_dist,
)
from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.formats.names import Describe

Format = Literal["mindspeed_ms", "torch", "torch_dist", "huggingface", "mindspore", "peft"]


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that exists."""

    folder: Path
    kind: Format
    iteration: int
    """0 for released weights, and for formats that do not count."""


def kind_of(folder: Path) -> Format | None:
    """Format of the checkpoint in a folder (or of a single file), None if there is none."""
    if folder.is_file():
        kinds: dict[str, Format] = {".safetensors": "huggingface", ".ckpt": "mindspore"}
        return kinds.get(folder.suffix)
    if not folder.is_dir():
        return None
    if (folder / storage.INDEX).is_file():
        return "mindspeed_ms"
    if peft.is_adapter_folder(folder):
        return "peft"
    if (folder / ".metadata").is_file():
        return "torch_dist"
    if any(folder.glob("mp_rank_*/*.pt")):
        return "torch"
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return "huggingface"
    patterns = ("*.ckpt", "rank_*/*.ckpt", "rank_*/*.safetensors")
    if any(any(folder.glob(pattern)) for pattern in patterns):
        return "mindspore"
    return None


def find_checkpoint(path: Path, step: int | None = None) -> Found | None:
    """The checkpoint that a path means; None where there is none at all.

    Args:
        path: the folder of a run with a marker, the folder of one checkpoint, or a file.
        step: iteration to take; None for the one the marker names, else the newest complete one.

    Raises:
        ValueError: the iteration that is asked for, or that the marker names, does not exist or
            is incomplete; the message lists those that can be taken.
    """
    kind = kind_of(path)
    if kind is not None and step is None:
        return Found(path, kind, _iteration_of(path))
    marked = storage.read_latest(path) if step is None and path.is_dir() else step
    if marked is None:
        complete = _complete(path)
        marked = complete[-1] if complete else None
    if marked is None:
        return None
    is_release = marked == storage.RELEASE
    folder = path / storage.RELEASE if is_release else storage.iteration_folder(path, int(marked))
    kind = kind_of(folder)
    if kind is None:
        others = ", ".join(map(str, _complete(path))) or "none"
        raise ValueError(
            f"{folder} holds no complete checkpoint; complete iterations in {path}: {others}. "
            "Choose one with --ckpt-step"
        )
    return Found(folder, kind, 0 if is_release else int(marked))


def _complete(path: Path) -> list[int]:
    return [
        iteration
        for iteration in storage.iterations_in(path)
        if kind_of(storage.iteration_folder(path, iteration)) is not None
    ]


def _iteration_of(folder: Path) -> int:
    digits = folder.name.removeprefix("iter_")
    return int(digits) if folder.name.startswith("iter_") and digits.isdigit() else 0


def open_checkpoint(found: Found, describe: Describe) -> Catalog:
    """What a checkpoint holds, under this project's names.

    Args:
        found: the checkpoint.
        describe: its common part -> the model, for formats with names of their own.

    Raises:
        ValueError: it is damaged, or of a format that is not read.
    """
    if found.kind == "peft":
        raise ValueError(
            f"{found.folder} holds adapters alone; load them with use_lora (--use-lora), or merge "
            "them into their base with convert_ckpt --base"
        )
    if found.kind == "mindspeed_ms":
        return own_format.read_catalog(found.folder)
    if found.kind == "torch":
        return megatron.read_catalog(found.folder, describe)
    if found.kind == "huggingface":
        return huggingface.read_catalog(found.folder)
    if found.kind == "mindspore":
        return mindspore_dirs.read_catalog(found.folder, describe)
    return torch_dist.read_catalog(found.folder, describe)
