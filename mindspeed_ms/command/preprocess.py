# SPDX-License-Identifier: Apache-2.0
"""Turn text into the token files (.bin, .idx) that training reads.

Example: mindspeed-ms preprocess --input corpus.jsonl --output-prefix corpus
--tokenizer-type SentencePieceTokenizer --tokenizer-model tok.model --append-eod --workers 2
writes corpus_text_document.bin and corpus_text_document.idx.

The input may also be plain text, folders, parquet, or a saved Hugging Face dataset. The files equal
those of Megatron's tool byte by byte, also with partitions; files of a glob or a folder are read in
the order of their names. A sample is decoded again, to see whether the tokenizer loses text.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product

from mindspeed_ms.data.indexed_dataset import (
    DType,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)
from mindspeed_ms.data.tokenizers import build_tokenizer
from mindspeed_ms.data.tokenizers.corpus import (
    Chunk,
    EncodedChunk,
    Encoder,
    Progress,
    count_documents,
    load_splitter,
    read_chunks,
)
from mindspeed_ms.data.tokenizers.round_trip import loss_in
from mindspeed_ms.data.tokenizers.text_sources import find_inputs
from mindspeed_ms.data.tokenizers.tokenizer_flags import add_tokenizer_flags
from mindspeed_ms.toolkit.launch.command import Parser

SAMPLED_FILES, SAMPLED_DOCUMENTS = 8, 16
"""What the tokenizer is tried on before it is used."""


def _logger() -> logging.Logger:
    """Of this tool."""
    return logging.getLogger("preprocess_data")


class _Worker:
    """Holder of the encoder of this worker process."""

    def __init__(self) -> None:
        self.encoder: Encoder | None = None


_worker = _Worker()


def _start_worker(args: argparse.Namespace, partition_size: int | None) -> None:
    _worker.encoder = make_encoder(args, partition_size)


def _encode_in_worker(chunk: Chunk) -> EncodedChunk:
    assert _worker.encoder is not None, "the pool calls _start_worker first"
    return _worker.encoder.encode_chunk(chunk)


def make_encoder(args: argparse.Namespace, partition_size: int | None = None) -> Encoder:
    """Encoder of one process, as the flags say."""
    tokenizer = build_tokenizer(args)
    return Encoder(
        tokenizer,
        args.json_keys,
        is_eod_appended=args.append_eod,
        splitter=load_splitter(args.lang, args.keep_newlines) if args.split_sentences else None,
        num_partitions=args.partitions,
        partition_size=partition_size,
    )


def encode(args: argparse.Namespace, paths: Sequence[str]) -> Iterator[EncodedChunk]:
    """Encode all lines in order, in this process or in several."""
    size = None
    if args.keep_sequential_samples and args.partitions > 1:
        counts = (count_documents(path, args.json_keys, args.documents) for path in paths)
        size = -(-sum(counts) // args.partitions)
    chunks = read_chunks(paths, keys=args.json_keys, unit=args.documents)
    if args.workers == 1:
        yield from map(make_encoder(args, size).encode_chunk, chunks)
        return
    start = partial(_start_worker, args, size)
    with multiprocessing.Pool(args.workers, start) as pool:
        yield from pool.imap(_encode_in_worker, chunks)


def write(args: argparse.Namespace, paths: Sequence[str]) -> Progress:
    """Write one dataset per key; return what was read."""
    dtype = DType.optimal_dtype(build_tokenizer(args).vocab_size)
    level = "sentence" if args.split_sentences else "document"
    prefixes = [f"{args.output_prefix}_{key}_{level}" for key in args.json_keys]
    progress = Progress(paths, args.log_interval, _logger())
    with ExitStack() as stack:
        builders = {
            (partition, key): stack.enter_context(
                IndexedDatasetBuilder(get_bin_path(f"{prefix}.part{partition}"), dtype)
                if partition
                else IndexedDatasetBuilder(get_bin_path(prefix), dtype)
            )
            for partition, (key, prefix) in product(range(args.partitions), enumerate(prefixes))
        }
        for chunk in encode(args, paths):
            for place, documents in chunk.documents.items():
                builders[place].add_documents(*documents)
            progress.add(chunk)
        progress.end()
        for key, partition in product(range(len(prefixes)), range(1, args.partitions)):
            builders[0, key].add_builder(builders[partition, key])
        filled = [key for key in range(len(prefixes)) if builders[0, key].num_tokens]
        if not filled:
            raise ValueError("no token was found; a dataset needs at least one: check the input")
        for key, prefix in enumerate(prefixes):
            if key in filled:
                builders[0, key].finalize(get_idx_path(prefix))
            else:
                _logger().warning(
                    "WARNING: key %r has no text in any document; no dataset is written of it",
                    args.json_keys[key],
                )
    return progress


def sample(args: argparse.Namespace, paths: Sequence[str]) -> Iterator[str]:
    """Texts from the beginnings of the first files."""
    for path in paths[:SAMPLED_FILES]:
        chunk = next(read_chunks([path], keys=args.json_keys, unit=args.documents), None)
        lines = [] if chunk is None else chunk.lines.splitlines()
        for line in lines[:SAMPLED_DOCUMENTS]:
            for key in args.json_keys:
                value = json.loads(line)[key]
                yield from value if isinstance(value, list) else [value]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags; their names are Megatron's."""
    parser = Parser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add(
        "--input",
        required=True,
        nargs="+",
        help="files, folders or patterns: .txt, .md, .jsonl, .parquet, .arrow, some with .gz",
    )
    add(
        "--documents",
        choices=("file", "paragraph", "line"),
        default="file",
        help="what of a plain text is a document",
    )
    add("--output-prefix", required=True, help="path of the output without _<key>_document.bin")
    add("--json-keys", nargs="+", default=["text"], help="keys whose texts are encoded")
    add("--append-eod", action="store_true", help="end each document with the eod token")
    add("--split-sentences", action="store_true", help="one sequence per sentence, by nltk")
    add("--keep-newlines", action="store_true", help="keep line ends between split sentences")
    add("--lang", default="english", help="language of the sentences")
    add("--workers", type=int, default=1, help="processes that encode; 1 encodes in this one")
    add("--partitions", type=int, default=1, help="parts whose documents follow one another")
    add(
        "--keep-sequential-samples",
        action="store_true",
        help="partitions are stretches of the input; else every n-th line",
    )
    add("--log-interval", type=int, default=1000, help="documents between progress lines")
    add_tokenizer_flags(parser)
    args = parser.parse_args(argv)
    for name in ("workers", "log_interval", "partitions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if "" in args.json_keys:
        parser.error("--json-keys names an empty key; give the keys that hold the texts")
    if len(set(args.json_keys)) < len(args.json_keys):
        parser.error(f"--json-keys names a key twice: {' '.join(args.json_keys)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Preprocess; bad input ends with one line and status 1."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    loss = None
    try:
        make_encoder(args)
        paths = find_inputs(args.input)
        progress = write(args, paths)
        if args.tokenizer_type != "NullTokenizer":
            loss = loss_in(build_tokenizer(args), sample(args, paths))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"preprocess_data: {' '.join(args.input)}: {' '.join(str(error).split())}")
    _logger().info(
        "wrote %d documents, %d tokens to %s_*; %.2f characters per token",
        progress.num_documents,
        progress.num_tokens,
        args.output_prefix,
        progress.num_characters / progress.num_tokens,
    )
    if loss is not None:
        _logger().warning("WARNING: %s", loss)
    return 0
