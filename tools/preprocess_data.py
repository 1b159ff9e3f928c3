"""Turn a JSON-lines file into the token files (.bin, .idx) that training reads.

Example: python tools/preprocess_data.py --input corpus.jsonl --output-prefix corpus
--tokenizer-type SentencePieceTokenizer --tokenizer-model tok.model --append-eod --workers 2
writes corpus_text_document.bin and corpus_text_document.idx.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import BinaryIO, NamedTuple

from mindspeed_ms.core.datasets.indexed_dataset import (
    DType,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)
from mindspeed_ms.training.tokenizer import (
    TOKENIZER_TYPES,
    Tokenizer,
    build_tokenizer,
)

logger = logging.getLogger("preprocess_data")

_LINES_PER_TASK = 32


class EncodedDocument(NamedTuple):
    """One line of input, encoded."""

    tokens: list[list[int]]
    """Token ids for each key, its sequences one after the other."""

    lengths: list[list[int]]
    """Tokens of each sequence for each key."""

    num_bytes: int
    """Size of the line."""


class Encoder:
    """Encodes lines; built once per worker process.

    Args:
        tokenizer: gives ids and the end-of-document token.
        json_keys: keys whose texts are encoded.
        is_eod_appended: end each document that is not empty with that token.
    """

    def __init__(
        self, tokenizer: Tokenizer, json_keys: Sequence[str], is_eod_appended: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._json_keys = json_keys
        self._is_eod_appended = is_eod_appended

    def encode(self, numbered_line: tuple[int, bytes]) -> EncodedDocument:
        """Encode one line.

        Raises:
            ValueError: it is no JSON object in UTF-8, or a key is missing or holds no text.
        """
        number, line = numbered_line
        tokens, lengths = [], []
        for sentences in self._texts(number, line):
            parts = [part for part in map(self._tokenizer.tokenize, sentences) if part]
            if parts and self._is_eod_appended:
                parts[-1] = [*parts[-1], self._tokenizer.eod]
            tokens.append([token for part in parts for token in part])
            lengths.append([len(part) for part in parts])
        return EncodedDocument(tokens, lengths, len(line))

    def _texts(self, number: int, line: bytes) -> list[list[str]]:
        try:
            document = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise ValueError(
                f"line {number} is not JSON in UTF-8 ({error}); each line must be one JSON object"
            ) from error
        if not isinstance(document, dict):
            raise ValueError(
                f"line {number} is a JSON {type(document).__name__}; each line must be one object"
            )
        texts = []
        for key in self._json_keys:
            if key not in document:
                raise ValueError(
                    f"line {number} has no key {key!r}, only {sorted(document)}; set --json-keys"
                )
            value = document[key]
            sentences = value if isinstance(value, list) else [value]
            if not all(isinstance(sentence, str) for sentence in sentences):
                raise ValueError(
                    f"line {number} holds no text under {key!r}; the value must be a string or a "
                    "list of strings"
                )
            texts.append(sentences)
        return texts


class _Worker:
    """Holder of the encoder of this worker process."""

    def __init__(self) -> None:
        self.encoder: Encoder | None = None

    def start(self, make_encoder: Callable[[], Encoder]) -> None:
        self.encoder = make_encoder()

    def encode(self, numbered_line: tuple[int, bytes]) -> EncodedDocument:
        assert self.encoder is not None, "the pool calls start before encode"
        return self.encoder.encode(numbered_line)


_worker = _Worker()


def _start_worker(make_encoder: Callable[[], Encoder]) -> None:
    _worker.start(make_encoder)


def _encode_in_worker(numbered_line: tuple[int, bytes]) -> EncodedDocument:
    return _worker.encode(numbered_line)


def _make_encoder(args: argparse.Namespace) -> Encoder:
    return Encoder(_tokenizer_from(args), args.json_keys, args.append_eod)


def _tokenizer_from(args: argparse.Namespace) -> Tokenizer:
    return build_tokenizer(
        args.tokenizer_type,
        tokenizer_model=args.tokenizer_model,
        vocab_size=args.vocab_size,
        vocab_extra_ids=args.vocab_extra_ids,
    )


def encode_lines(args: argparse.Namespace, source: BinaryIO) -> Iterator[EncodedDocument]:
    """Encode all lines in order, in this process or in several."""
    lines = enumerate(source, start=1)
    if args.workers == 1:
        yield from map(_make_encoder(args).encode, lines)
        return
    make_encoder = partial(_make_encoder, args)
    with multiprocessing.Pool(args.workers, _start_worker, (make_encoder,)) as pool:
        yield from pool.imap(_encode_in_worker, lines, _LINES_PER_TASK)


def write_documents(args: argparse.Namespace, documents: Iterable[EncodedDocument]) -> int:
    """Write one dataset per key; return the number of documents."""
    dtype = DType.optimal_dtype(_tokenizer_from(args).vocab_size)
    prefixes = [f"{args.output_prefix}_{key}_document" for key in args.json_keys]
    with ExitStack() as stack:
        builders = [
            stack.enter_context(IndexedDatasetBuilder(get_bin_path(prefix), dtype))
            for prefix in prefixes
        ]
        start, num_bytes, count = time.monotonic(), 0, 0
        for count, document in enumerate(documents, start=1):  # noqa: B007  (count is returned)
            num_bytes += document.num_bytes
            for builder, tokens, lengths in zip(
                builders, document.tokens, document.lengths, strict=True
            ):
                builder.add_document(tokens, lengths)
            if count % args.log_interval == 0:
                seconds = max(time.monotonic() - start, 1e-9)
                logger.info(
                    "Processed %d documents (%.1f docs/s, %.2f MB/s).",
                    count,
                    count / seconds,
                    num_bytes / seconds / 2**20,
                )
        for builder, prefix in zip(builders, prefixes, strict=True):
            builder.finalize(get_idx_path(prefix))
    return count


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags; their names are Megatron's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--input", required=True, help="JSON-lines file")
    add("--output-prefix", required=True, help="path of the output without _<key>_document.bin")
    add("--json-keys", nargs="+", default=["text"], help="keys whose texts are encoded")
    add("--tokenizer-type", required=True, help=f"one of {', '.join(TOKENIZER_TYPES)}")
    add("--tokenizer-model", help="SentencePiece model file")
    add("--vocab-size", type=int, help="number of ids of NullTokenizer")
    add("--vocab-extra-ids", type=int, default=0, help="sentinel tokens of SentencePieceTokenizer")
    add("--append-eod", action="store_true", help="end each document with the eod token")
    add("--workers", type=int, default=1, help="processes that encode; 1 encodes in this one")
    add("--log-interval", type=int, default=1000, help="documents between progress lines")
    args = parser.parse_args(argv)
    for name in ("workers", "log_interval"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if len(set(args.json_keys)) < len(args.json_keys):
        parser.error(f"--json-keys names a key twice: {' '.join(args.json_keys)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Preprocess one file; bad input ends with one line and status 1."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _tokenizer_from(args)
        with open(args.input, "rb") as source:
            count = write_documents(args, encode_lines(args, source))
    except (ValueError, OSError) as error:
        sys.exit(f"preprocess_data: {args.input}: {error}")
    logger.info("wrote %d documents to %s_*_document", count, args.output_prefix)


if __name__ == "__main__":
    main()
