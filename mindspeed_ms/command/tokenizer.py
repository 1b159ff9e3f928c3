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
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from mindspeed_ms.data.tokenizers import (
    Tokenizer,
    build_tokenizer,
    optional_libraries,
)
from mindspeed_ms.data.tokenizers.corpus import read_chunks
from mindspeed_ms.data.tokenizers.round_trip import loss_in
from mindspeed_ms.data.tokenizers.text_sources import Unit, find_inputs

END = "<|endoftext|>"
_LINE = 1000
"""Characters of a stretch that SentencePiece learns from; it leaves out what is much longer."""
_MOST_SENTENCES = 5_000_000
_KEPT = ["\n", "\t", "  ", "    ", "        "]
"""Always a token; SentencePiece would take a newline for the end of its input."""
_SAMPLE = 64
_ADDED = 5
"""Tokens that SentencePieceTokenizer adds to those of a model."""


def texts_of(paths: Sequence[str], keys: Sequence[str], unit: Unit) -> Iterator[str]:
    """Texts of all documents.

    Raises:
        ValueError: a line is no JSON object, or has no text under a key.
    """
    for chunk in read_chunks(paths, keys=keys, unit=unit):
        for offset, line in enumerate(chunk.lines.splitlines()):
            where = f"line {chunk.first_line + offset} of {chunk.path}"
            try:
                document = json.loads(line)
                values = [document[key] for key in keys]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{where} is no JSON object with {', '.join(keys)} ({error}); set --json-keys"
                ) from None
            for value in values:
                for text in value if isinstance(value, list) else [value]:
                    if not isinstance(text, str):
                        raise ValueError(f"{where} holds no text; set --json-keys")
                    yield text


def stretches(texts: Iterator[str]) -> Iterator[str]:
    """Lines without their ends, cut where they are long."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LINE):
                part = line[start : start + _LINE].replace("\0", "")
                if part:
                    yield part


def train_sentencepiece(texts: Iterator[str], vocab_size: int, output: Path) -> list[str]:
    """Write a model; return the flags that use it.

    Raises:
        ValueError: there is too little text for so many tokens, or none.
    """
    model = io.BytesIO()  # the name of a file would become part of the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=stretches(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            character_coverage=0.9999,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            user_defined_symbols=_KEPT,
            split_digits=True,
            input_sentence_size=_MOST_SENTENCES,
            shuffle_input_sentence=True,
            num_threads=len(os.sched_getaffinity(0)),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(_told(str(error), vocab_size)) from None
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(model.getvalue())
    return ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(output)]


def _told(problem: str, vocab_size: int) -> str:
    """SentencePiece's complaint as a user can follow it."""
    given = f"--vocab-size {vocab_size + _ADDED}"
    most = re.search(r"set it to a value <= (\d+)", problem)
    if most:
        return (
            f"{given} is more than this text has pieces for; give at most {int(most[1]) + _ADDED}"
        )
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
    """
    library = optional_libraries.load("tokenizers", "--kind bpe")
    trained = library.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=vocab_size, special_tokens=[END], show_progress=False
    )
    output.mkdir(parents=True, exist_ok=True)
    trained.save_model(str(output))
    trained.save(str(output / "tokenizer.json"))
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    (output / "tokenizer_config.json").write_text(json.dumps(stated, indent=2) + "\n")
    files = ["--vocab-file", str(output / "vocab.json"), "--merge-file", str(output / "merges.txt")]
    return ["--tokenizer-type", "GPT2BPETokenizer", *files]


def opened(flags: Sequence[str]) -> Tokenizer:
    """The tokenizer that flags name."""
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    return build_tokenizer(argparse.Namespace(**dict(zip(names, flags[1::2], strict=True))))


def train(given: argparse.Namespace) -> None:
    """Train, and say what came of it.

    Raises:
        ValueError: the input holds no text, or not enough.
    """
    paths = find_inputs(given.input)
    texts = texts_of(paths, given.json_keys, given.documents)
    if given.kind == "bpe":
        flags = train_bpe(texts, given.vocab_size, given.output)
    else:
        flags = train_sentencepiece(texts, given.vocab_size - _ADDED, given.output)
    tokenizer = opened(flags)
    sample = [
        text
        for text, _ in zip(
            texts_of(paths, given.json_keys, given.documents), range(_SAMPLE), strict=False
        )
    ]
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
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join((__doc__ or "").splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    try:
        if given.output.exists() and not given.force:
            raise ValueError(f"{given.output} exists; name another, or overwrite it with --force")
        train(given)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"mindspeed-ms tokenizer: error: {' '.join(str(error).split())}\n")
        return 2
    return 0
