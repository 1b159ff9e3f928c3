# SPDX-License-Identifier: Apache-2.0
"""Train a tokenizer on text of your own; every text comes back from its tokens as it was.

mindspeed-ms tokenizer train --input texts/ --vocab-size 8000 --output my.model
mindspeed-ms tokenizer train --input data.jsonl --kind bpe --vocab-size 32000 --output my_tokenizer/

The first writes a SentencePiece model, with newlines, tabs and runs of blanks as tokens and bytes
for what it has not seen. The second, which needs the extra `tokenizers`, writes vocab.json and
merges.txt as GPT-2 has them, and tokenizer.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mindspeed_ms.data.tokenizers import (
    Tokenizer,
    build_tokenizer,
    optional_libraries,
)
from mindspeed_ms.data.tokenizers.corpus import read_chunks, texts_of_line
from mindspeed_ms.data.tokenizers.round_trip import loss_in
from mindspeed_ms.data.tokenizers.sentencepiece_training import (
    TrainingError,
    train_sentencepiece,
)
from mindspeed_ms.data.tokenizers.text_sources import Unit, find_inputs
from mindspeed_ms.files.whole import appears_whole, unfinished_folder, write_text
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

END = "<|endoftext|>"
_LINE = 1000
"""Characters of a stretch that SentencePiece learns from; it leaves out what is much longer."""
_MOST_SENTENCES = 5_000_000
_KEPT = ["\n", "\t", "  ", "    ", "        "]
"""Always a token; SentencePiece would take a newline for the end of its input."""
_SAMPLE = 64
_ADDED = 5
"""Tokens that SentencePieceTokenizer adds to those of a model."""
_BYTES = 257
"""Tokens of a byte-level tokenizer that has learned nothing: every byte, and the end."""


def texts_of(
    paths: Sequence[str], keys: Sequence[str], unit: Unit, sample: list[str]
) -> Iterator[str]:
    """Texts of all documents; the first ones are put into ``sample`` as well.

    Raises:
        ValueError: a line is no JSON object, or has no text under a key.
    """
    for chunk in read_chunks(paths, keys=keys, unit=unit):
        for where, line in chunk.placed_lines():
            for text in chain.from_iterable(texts_of_line(line, where, keys)):
                if len(sample) < _SAMPLE:
                    sample.append(text)
                yield text


def stretches(texts: Iterator[str]) -> Iterator[str]:
    """Lines without their ends, cut where they are long."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LINE):
                part = line[start : start + _LINE].replace("\0", "")
                if part:
                    yield part


def train_pieces(texts: Iterator[str], vocab_size: int, output: Path) -> list[str]:
    """Write a SentencePiece model; return the flags that use it.

    Raises:
        ValueError: there is too little text for so many tokens, or none.
    """
    with appears_whole(output) as unfinished:
        unfinished.touch()  # where none can be written, learning would be in vain
        try:
            model = train_sentencepiece(
                stretches(texts),
                vocab_size - _ADDED,
                character_coverage=0.9999,
                byte_fallback=True,
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                user_defined_symbols=_KEPT,
                split_digits=True,
                input_sentence_size=_MOST_SENTENCES,
                shuffle_input_sentence=True,
                num_threads=len(os.sched_getaffinity(0)),
            )
        except TrainingError as error:
            raise ValueError(_told(str(error), vocab_size)) from None
        unfinished.write_bytes(model)
    return ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(output)]


def _told(problem: str, vocab_size: int) -> str:
    """SentencePiece's complaint as a user can follow it."""
    given = f"--vocab-size {vocab_size}"
    most = re.search(r"set it to a value <= (\d+)", problem)
    if most:
        return (
            f"{given} is more than this text has pieces for; give at most {int(most[1]) + _ADDED}"
        )
    if vocab_size <= _ADDED:
        return f"{given} leaves no token for text; give more than {_ADDED}"
    fewest = re.search(r"smaller than required_chars\D*\d+ vs (\d+)", problem)
    if fewest:
        needed = int(fewest[1]) + _ADDED
        return f"{given} is less than characters and bytes need; give more than {needed}"
    if "Input corpus is empty" in problem or "sentences_.empty()" in problem:
        return "the input holds no text"
    return f"sentencepiece cannot train on this text: {' '.join(problem.split())[:200]}"


def train_bpe(texts: Iterator[str], vocab_size: int, output: Path) -> list[str]:
    """Write a folder with a byte-level BPE; return the flags that use it.

    Raises:
        RuntimeError: the library `tokenizers` is not installed.
        ValueError: bytes alone are more tokens.
    """
    library = optional_libraries.load("tokenizers", "--kind bpe")
    if vocab_size < _BYTES:
        raise ValueError(
            f"--vocab-size {vocab_size} is less than the bytes and {END}; give {_BYTES} or more"
        )
    trained = library.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=vocab_size, special_tokens=[END], show_progress=False
    )
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    with unfinished_folder(output, "tokenizer") as folder:
        _saved(trained, folder, stated)
        made = sorted(folder.iterdir())
        for path in made:  # whoever is killed in between leaves no mixture of two tokenizers
            (output / path.name).unlink(missing_ok=True)
        for path in made:
            os.replace(path, output / path.name)
    files = ["--vocab-file", str(output / "vocab.json"), "--merge-file", str(output / "merges.txt")]
    return ["--tokenizer-type", "GPT2BPETokenizer", *files]


def _saved(trained: Any, folder: Path, stated: Mapping[str, str]) -> None:
    """Write the files of a BPE.

    Raises:
        OSError: one cannot be written.
    """
    try:
        trained.save_model(str(folder))
        trained.save(str(folder / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001  (the library raises nothing more special)
        raise OSError(f"{folder.parent} cannot be written ({error}); make room") from None
    write_text(folder / "tokenizer_config.json", json.dumps(stated, indent=2) + "\n")


def opened(flags: Sequence[str]) -> Tokenizer:
    """The tokenizer that flags name."""
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    return build_tokenizer(argparse.Namespace(**dict(zip(names, flags[1::2], strict=True))))


def train(given: argparse.Namespace) -> None:
    """Train, and say what came of it.

    Raises:
        ValueError: the input holds no text, or not enough.
    """
    sample: list[str] = []
    texts = texts_of(find_inputs(given.input), given.json_keys, given.documents, sample)
    if given.kind == "bpe":
        flags = train_bpe(texts, given.vocab_size, given.output)
    else:
        flags = train_pieces(texts, given.vocab_size, given.output)
    tokenizer = opened(flags)
    characters = sum(map(len, sample))
    tokens = sum(len(tokenizer.tokenize(text)) for text in sample)
    sys.stdout.write(
        f"wrote {given.output}: {tokenizer.vocab_size} tokens, "
        f"{characters / max(tokens, 1):.2f} characters per token\nuse it with: {' '.join(flags)}\n"
    )
    loss = loss_in(tokenizer, sample)
    if loss is not None:
        sys.stdout.write(f"WARNING: {loss}\n")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = Parser.of(__doc__)
    kinds = parser.add_subparsers(dest="command", required=True, metavar="train")
    training = kinds.add_parser("train", help="train one on text")
    add = training.add_argument
    add("--input", required=True, nargs="+", help="files, folders or patterns, as of preprocess")
    add("--output", required=True, type=Path, help="the model's file; with --kind bpe a folder")
    add("--vocab-size", type=int, default=8000, help="tokens in all (default: 8000)")
    add("--kind", choices=("sentencepiece", "bpe"), default="sentencepiece")
    add("--json-keys", nargs="+", default=["text"], help="keys, or columns, that hold the texts")
    add("--documents", choices=("file", "paragraph", "line"), default="file")
    add("--force", action="store_true", help="overwrite the output")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train; bad input ends with one line."""
    given = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with user_errors():
        if given.output.exists() and not given.force:
            raise ValueError(f"{given.output} exists; name another, or overwrite it with --force")
        train(given)
    return 0
