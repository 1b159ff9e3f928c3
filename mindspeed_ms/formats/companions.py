# SPDX-License-Identifier: Apache-2.0
"""Files that stand beside the weights of a Hugging Face model, and go where the weights go.

A folder from the hub is more than its weights: generation defaults, tokenizer, chat templates,
license. Formats without a place for them keep them, and ``config.json``, in a folder
``huggingface`` beside the checkpoint, so that the way back loses nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mindspeed_ms.files.regular_file import read_text, real_path
from mindspeed_ms.formats.containers import storage

FOLDER = "huggingface"
CONFIG = "config.json"
GENERATION = "generation_config.json"
CARD = "README.md"

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "vocab.model",
    "vocab.bpe",
    "encoder.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
)
"""Patterns of the files of a tokenizer."""

OTHERS = (GENERATION, CARD, "LICENSE*", "NOTICE*", "USE_POLICY*", ".gitattributes")
"""Patterns of what else is carried."""


def of_folder(folder: Path, patterns: tuple[str, ...] = (*TOKENIZER, *OTHERS)) -> Iterator[Path]:
    """Files of a folder that go with the weights, as paths below it."""
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if path.is_file():
                yield path.relative_to(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vocabulary in some form."""
    vocabularies = (name for name in TOKENIZER if "config" not in name and "template" not in name)
    return any(next(folder.glob(name), None) for name in vocabularies)


def origin_of(checkpoint: Path) -> Path | None:
    """The folder with the files of the hub's model that a checkpoint comes from; None if unknown.

    Args:
        checkpoint: folder of a hub's model, of one checkpoint, of a run, or a file.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for place in (folder, folder / FOLDER, folder.parent / FOLDER):
        if (place / CONFIG).is_file() and "model_type" in _read(place / CONFIG):
            return place
    return None


def tokenizer_of(checkpoint: Path) -> Path | None:
    """The folder with the files of the tokenizer that a checkpoint was trained with, if kept.

    Args:
        checkpoint: see ``origin_of``.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    places = (folder / FOLDER, folder.parent / FOLDER)
    return next((place for place in places if has_tokenizer(place)), None)


def origin_config(checkpoint: Path) -> dict[str, Any] | None:
    """``config.json`` of the model that a checkpoint comes from."""
    origin = origin_of(checkpoint)
    return None if origin is None else _read(origin / CONFIG)


def generation_defaults(checkpoint: Path) -> dict[str, Any]:
    """``generation_config.json`` of the model that a checkpoint comes from; empty if unknown."""
    origin = origin_of(checkpoint)
    path = None if origin is None else origin / GENERATION
    return _read(path) if path is not None and path.is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); correct the file") from error
    return content if isinstance(content, dict) else {}


def carry(
    origin: Path, target: Path, patterns: tuple[str, ...] = (*TOKENIZER, *OTHERS)
) -> list[str]:
    """Copy what goes with the weights; a file that is there already stays.

    Args:
        origin: folder from ``origin_of``, or ``tokenizer_of``.
        target: folder of a hub's model.
        patterns: of the files to copy.

    Returns:
        Names of the files that were copied.
    """
    carried = []
    for name in of_folder(origin, patterns):
        place = target / name
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(place.name + storage.PARTIAL)
        shutil.copyfile(origin / name, partial)
        storage.put_in_place(partial, place)
        carried.append(str(name))
    return carried


def keep(origin: Path, root: Path, config: Mapping[str, Any] | None = None) -> None:
    """Keep the files of a hub's model beside a checkpoint of another format.

    Args:
        origin: folder from ``origin_of``.
        root: folder of the run, or of the model.
        config: its ``config.json``, None for the one there.
    """
    target = root / FOLDER
    if real_path(target) == real_path(origin) or (target / CONFIG).is_file():
        return
    target.mkdir(parents=True, exist_ok=True)
    if real_path(origin) != real_path(root):
        carry(origin, target)
    values = _read(origin / CONFIG) if config is None else config
    storage.write_text(target / CONFIG, json.dumps(values, indent=2) + "\n")


def keep_tokenizer(tokenizer: Path, root: Path) -> None:
    """Keep the files of a tokenizer beside checkpoints; the hub's model that is there has its own.

    Args:
        tokenizer: its folder.
        root: folder of the run, or of the model.
    """
    target = root / FOLDER
    if not has_tokenizer(target) and real_path(target) != real_path(tokenizer):
        carry(tokenizer, target, TOKENIZER)


def complete_card(folder: Path, text: str) -> None:
    """Write a model card unless there is one."""
    if not (folder / CARD).exists():
        storage.write_text(folder / CARD, text)


def card(config: Mapping[str, Any], num_parameters: int, source: str) -> str:
    """A model card: what the hub shows of a model.

    Args:
        config: ``config.json``.
        num_parameters: of the model.
        source: what it was written from, in words.
    """
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    architecture = (config.get("architectures") or ["a language model"])[0]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- {config.get("model_type")}
- mindspeed_ms
---

# {architecture}, {_count(num_parameters)} parameters

Written by mindspeed_ms from {source}.

| | |
|---|---|
| model type | `{config.get("model_type")}` |
| parameters | {num_parameters:,} |
| vocabulary | {config.get("vocab_size"):,} |
| type of the weights | {dtype} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```
"""


def _count(number: int) -> str:
    """A number as sizes of models are spoken of.

    >>> _count(6_738_415_616), _count(124_439_808), _count(910)
    ('6.7B', '124M', '910')
    """
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            digits = 0 if number >= 100 * unit else 1
            return f"{number / unit:.{digits}f}{name}"
    return str(number)
