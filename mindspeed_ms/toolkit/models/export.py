# SPDX-License-Identifier: Apache-2.0
"""What a folder for the hub needs beside weights: tokenizer, ids of special tokens, generation.

Source of the file formats: ``transformers`` 5.24. No MindSpore is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindspeed_ms.config import AllConfig, DatasetConfig
from mindspeed_ms.formats import companions
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.formats.huggingface import read_config
from mindspeed_ms.toolkit.tokenization.auto import AutoTokenizer
from mindspeed_ms.toolkit.tokenization.base import PreTrainedTokenizerFast
from mindspeed_ms.toolkit.tokenization.classes import GPT2Tokenizer

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_MODEL_TYPES = (
    "HuggingFaceTokenizer",
    "SFTTokenizer",
    "SentencePieceTokenizer",
    "GPTSentencePieceTokenizer",
    "Llama2Tokenizer",
)


def complete(folder: Path, config: AllConfig, has_origin: bool = False) -> list[str]:
    """Add what is missing to a model's folder, from the tokenizer that the run was configured with.

    Args:
        folder: with ``config.json``.
        config: what is known of the model and its run.
        has_origin: the model comes from the hub; ``config.json`` says of the ids what it means to.

    Returns:
        What was added, and what could not be, in words.
    """
    notes = []
    tokenizer = None
    if not companions.has_tokenizer(folder):
        tokenizer, note = _tokenizer_of(config.dataset_config)
        notes.append(note)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    elif not has_origin:
        tokenizer, note = _opened(folder, str(folder))
        notes += [] if tokenizer is not None else [note]
    values = read_config(folder)
    if tokenizer is not None:
        missing = {key: getattr(tokenizer, key) for key in IDS if values.get(key) is None}
        added = {key: value for key, value in missing.items() if value is not None}
        if added:
            values |= added
            _write(folder / companions.CONFIG, values)
            notes.append(f"from the tokenizer: {', '.join(added)}")
    if not (folder / companions.GENERATION).exists():
        ids = {key: values[key] for key in IDS if values.get(key) is not None}
        _write(folder / companions.GENERATION, {"_from_model_config": True, **ids})
    return notes


def _write(path: Path, values: dict[str, Any]) -> None:
    storage.write_text(path, json.dumps(values, indent=2) + "\n")


def _opened(place: str | Path, name: str) -> tuple[PreTrainedTokenizerFast | None, str]:
    """A tokenizer in a folder or file, and a line about it."""
    try:
        return AutoTokenizer.from_pretrained(place), f"tokenizer: {name}"
    except (OSError, ValueError) as error:
        return None, f"tokenizer left out: {error}"


def _tokenizer_of(dataset: DatasetConfig) -> tuple[PreTrainedTokenizerFast | None, str]:
    """The tokenizer of a run, and a line about it."""
    kind = dataset.tokenizer_type
    try:
        if kind == "GPT2BPETokenizer" and dataset.vocab_file and dataset.merge_file:
            made = GPT2Tokenizer(dataset.vocab_file, dataset.merge_file)
            return made, f"tokenizer: {dataset.vocab_file}, {dataset.merge_file}"
    except (OSError, ValueError) as error:
        return None, f"tokenizer left out: {error}"
    if kind in _MODEL_TYPES and dataset.tokenizer_model:
        return _opened(dataset.tokenizer_model, dataset.tokenizer_model)
    named = (
        f"of type {kind}, which the hub has no form for" if kind else "the checkpoint names none"
    )
    return None, f"tokenizer left out: {named}; copy its files into the folder"
