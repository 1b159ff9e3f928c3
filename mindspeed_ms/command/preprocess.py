# SPDX-License-Identifier: Apache-2.0
"""Turn text into the token files (.bin, .idx) that training reads.

Example: mindspeed-ms preprocess --input corpus.jsonl --output-prefix corpus
--tokenizer-type SentencePieceTokenizer --tokenizer-model tok.model --append-eod --workers 2
writes corpus_text_document.bin and corpus_text_document.idx.

With --handler-name AlpacaStyleInstructionHandler --prompt-type qwen, records of questions and
answers become the files that training with --is-instruction-dataset reads.

The input may also be plain text, folders, parquet, or a saved Hugging Face dataset. The files equal
those of Megatron's tool byte by byte, also with partitions; files of a glob or a folder are read in
the order of their names. A sample is decoded again, to see whether the tokenizer loses text.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, product

from mindspeed_ms.command import instruction_files
from mindspeed_ms.command.workers import in_order
from mindspeed_ms.data.indexed_dataset import (
    DType,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)
from mindspeed_ms.data.tokenizers import Tokenizer, build_tokenizer
from mindspeed_ms.data.tokenizers.corpus import (
    Chunk,
    Encoder,
    Progress,
    count_documents,
    load_splitter,
    read_chunks,
    texts_of_line,
)
from mindspeed_ms.data.tokenizers.round_trip import loss_in
from mindspeed_ms.data.tokenizers.text_sources import find_inputs
from mindspeed_ms.data.tokenizers.tokenizer_flags import add_tokenizer_flags
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

SAMPLED_FILES, SAMPLED_DOCUMENTS = 8, 16
"""What the tokenizer is tried on before it is used."""


def _logger() -> logging.Logger:
    """Of this tool."""
    return logging.getLogger("preprocess_data")


@dataclass(slots=True)
class Sample:
    """Beginnings of the first files, which the tokenizer is tried on."""

    keys: Sequence[str]
    taken: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    """File -> its first lines."""

    def noted(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Hand chunks on and keep what is the sample's."""
        for chunk in chunks:
            if chunk.first_line == 1 and len(self.taken) < SAMPLED_FILES:
                self.taken[chunk.path] = chunk.placed_lines()[:SAMPLED_DOCUMENTS]
            yield chunk

    def texts(self) -> Iterator[str]:
        """Every text of it."""
        for lines in self.taken.values():
            for where, line in lines:
                for texts in texts_of_line(line, where, self.keys):
                    yield from texts


def make_encoder(args: argparse.Namespace, tokenizer: Tokenizer, paths: Sequence[str]) -> Encoder:
    """What the flags say of encoding."""
    size = None
    if args.keep_sequential_samples and args.partitions > 1:
        counts = (count_documents(path, args.json_keys, args.documents) for path in paths)
        size = -(-sum(counts) // args.partitions)
    return Encoder(
        tokenizer,
        args.json_keys,
        is_eod_appended=args.append_eod,
        splitter=load_splitter(args.lang, args.keep_newlines) if args.split_sentences else None,
        num_partitions=args.partitions,
        partition_size=size,
    )


def write(
    args: argparse.Namespace, tokenizer: Tokenizer, paths: Sequence[str], sample: Sample
) -> Progress:
    """Write one dataset per key; return what was read."""
    dtype = DType.optimal_dtype(tokenizer.vocab_size)
    encoder = make_encoder(args, tokenizer, paths)
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
        chunks = sample.noted(read_chunks(paths, keys=args.json_keys, unit=args.documents))
        for chunk in in_order(encoder.encode_chunk, chunks, args.workers):
            for place, documents in chunk.documents.items():
                builders[place].add_documents(*documents)
            progress.add(chunk)
        progress.end()
        for key, partition in product(range(len(prefixes)), range(1, args.partitions)):
            builders[0, key].add_builder(builders[partition, key])
        filled = [key for key in range(len(prefixes)) if builders[0, key].num_tokens]
        if not filled:
            raise ValueError(
                f"no token was found in {' '.join(args.input)}; a dataset needs at least one: "
                "check the input"
            )
        for key, prefix in enumerate(prefixes):
            if key in filled:
                builders[0, key].finalize(get_idx_path(prefix))
            else:
                _logger().warning(
                    "WARNING: key %r has no text in any document; no dataset is written of it",
                    args.json_keys[key],
                )
    return progress


def _instructions(args: argparse.Namespace) -> None:
    """Write instruction data.

    Raises:
        ValueError: flags, a tokenizer or records that cannot be used.
    """
    tokenizer, paths = build_tokenizer(args), find_inputs(args.input)
    encoder = instruction_files.InstructionEncoder(args, tokenizer)
    unread: Counter[str] = Counter()
    records = instruction_files.placed_records(paths, encoder.reader, unread)
    written = chain.from_iterable(in_order(encoder, records, args.workers))
    outcome = instruction_files.write_instructions(args, encoder, tokenizer, written)
    outcome.unread = unread
    outcome.tell(_logger(), args)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags; their names are Megatron's."""
    parser = Parser.of(__doc__)
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
    instruction_files.add_flags(parser)
    add_tokenizer_flags(parser)
    args = parser.parse_args(argv)
    instruction_files.check_flags(parser, args)
    for name in ("workers", "log_interval", "partitions"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if "" in args.json_keys:
        parser.error("--json-keys names an empty key; give the keys that hold the texts")
    if len(set(args.json_keys)) < len(args.json_keys):
        parser.error(f"--json-keys names a key twice: {' '.join(args.json_keys)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Preprocess; bad input ends with one line and status 2."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.handler_name in instruction_files.INSTRUCTION_HANDLERS:
        with user_errors():
            _instructions(args)
        return 0
    loss = None
    with user_errors():
        tokenizer = build_tokenizer(args)
        paths, sample = find_inputs(args.input), Sample(args.json_keys)
        progress = write(args, tokenizer, paths, sample)
        if args.tokenizer_type != "NullTokenizer":
            loss = loss_in(tokenizer, sample.texts())
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
