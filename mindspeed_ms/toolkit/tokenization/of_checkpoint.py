# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that flags name, or that a checkpoint of any format was trained with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindspeed_ms.config.beside import located_from_checkpoint
from mindspeed_ms.data.tokenizers import Tokenizer, build_tokenizer
from mindspeed_ms.data.tokenizers.tokenizer_flags import add_tokenizer_flags
from mindspeed_ms.engine.datasets import named_tokenizer
from mindspeed_ms.formats.companions import has_tokenizer
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.toolkit.tokenization.auto import AutoTokenizer
from mindspeed_ms.training.checkpoint_config import config_of, spec_of

_FILES = ("tokenizer_model", "vocab_file", "merge_file")


class Words:
    """A tokenizer of training, called as those of ``transformers``.

    Args:
        tokenizer: the tokenizer.
    """

    bos_token_id = pad_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.eos_token_id = tokenizer, tokenizer.eod

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Ids of a text; there are no special tokens to add."""
        return {"input_ids": list(self.tokenizer.tokenize(text))}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ids."""
        kept = [id for id in ids if not (skip_special_tokens and id == self.eos_token_id)]
        return self.tokenizer.detokenize(kept)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that ``tokenizer_of`` reads."""
    words = parser.add_argument_group("tokenizer (default: that of the checkpoint)")
    words.add_argument("--tokenizer", help="folder of a Hugging Face tokenizer")
    add_tokenizer_flags(words, is_required=False)


def tokenizer_of(arguments: argparse.Namespace, folder: Path) -> Any:
    """The tokenizer that the flags name, or that is in or with the checkpoint of a folder.

    Raises:
        ValueError: there is none.
    """
    if arguments.tokenizer:
        return AutoTokenizer.from_pretrained(arguments.tokenizer)
    if arguments.tokenizer_type:
        return Words(build_tokenizer(arguments))
    if has_tokenizer(folder):
        return AutoTokenizer.from_pretrained(folder)
    found = find_checkpoint(folder, None)
    if found is None:
        raise ValueError(f"{folder} holds no checkpoint; name the folder of one")
    common = open_checkpoint(found, spec_of).common
    # A file cannot consent in the user's place to code being run.
    trust = getattr(arguments, "trust_remote_code", False)
    megatrons = {**(common.get("megatron_args") or {}), "trust_remote_code": trust}
    if megatrons.get("tokenizer_type") is not None:
        return Words(build_tokenizer(argparse.Namespace(**megatrons)))
    data = config_of(common).dataset_config
    if data.tokenizer_type is None:
        raise ValueError(
            f"{folder} does not say which tokenizer it was trained with; give --tokenizer FOLDER, "
            "or --tokenizer-type with its files"
        )
    files = located_from_checkpoint({name: getattr(data, name) for name in _FILES}, folder)
    return Words(named_tokenizer(replace(data, trust_remote_code=trust, **files)))
