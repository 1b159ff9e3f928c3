# SPDX-License-Identifier: Apache-2.0
"""Say what a dataset holds: documents, tokens, lengths, and some of its samples as text.

Example: python tools/inspect_dataset.py data/tiny/tiny_text_document --samples 2
--tokenizer-type SentencePieceTokenizer --tokenizer-model data/tiny/tok.model
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.indexed_dataset import IndexedDataset, get_bin_path
from mindspeed_ms.data.tokenizers import TOKENIZER_TYPES, Tokenizer, build_tokenizer
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

_BAR = 40
_TOKEN_BLOCK = 1 << 22


def histogram(lengths: NDArray[np.int32]) -> Iterator[str]:
    """Lines of a histogram of sequence lengths, one per power of two."""
    buckets = np.zeros(len(lengths), dtype=np.int64)
    filled = lengths > 0
    buckets[filled] = np.floor(np.log2(lengths[filled])).astype(np.int64) + 1
    counts = np.bincount(buckets)
    widest = int(counts.max())
    for bucket in np.flatnonzero(counts).tolist():
        low, high = (0, 0) if bucket == 0 else (2 ** (bucket - 1), 2**bucket - 1)
        bar = "#" * max(1, round(_BAR * int(counts[bucket]) / widest))
        yield f"  {low:>10} - {high:<10} {int(counts[bucket]):>12}  {bar}"


def summary(dataset: IndexedDataset) -> Iterator[str]:
    """Lines about the whole dataset."""
    lengths = dataset.sequence_lengths
    num_tokens = int(lengths.sum(dtype=np.int64))
    smallest, largest = np.iinfo(np.int64).max, 0
    if dataset.dtype.kind in "iu":
        for _, tokens in dataset.token_blocks(_TOKEN_BLOCK):
            smallest, largest = min(smallest, int(tokens.min())), max(largest, int(tokens.max()))
    yield f"documents          {len(dataset.document_indices) - 1}"
    yield f"sequences          {len(lengths)}, {int((lengths == 0).sum())} of them empty"
    yield f"tokens             {num_tokens} of type {dataset.dtype.name}"
    if dataset.dtype.kind in "iu":
        yield f"token ids          {smallest} to {largest}"
    yield f"bytes              {os.path.getsize(get_bin_path(dataset.path_prefix))}"
    middle, high = np.percentile(lengths, [50, 99])
    yield (
        f"sequence length    {int(lengths.min())} to {int(lengths.max())}, mean "
        f"{num_tokens / len(lengths):.1f}, median {middle:.0f}, 99 % up to {high:.0f}"
    )
    yield "sequences by length:"
    yield from histogram(lengths)


def samples(
    dataset: IndexedDataset, numbers: Sequence[int], tokenizer: Tokenizer | None, max_tokens: int
) -> Iterator[str]:
    """Lines about single sequences: their first tokens, and these as text."""
    for number in numbers:
        ids = dataset.get(number)
        shown = ids[:max_tokens].tolist()
        more = f" ... ({len(ids)} in all)" if len(ids) > max_tokens else ""
        yield f"sequence {number}: {' '.join(map(str, shown))}{more}"
        if tokenizer is not None:
            yield f"  {tokenizer.detokenize(shown)!r}"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags."""
    parser = Parser.of(__doc__)
    add = parser.add_argument
    add("prefix", help="path of the dataset without .bin and .idx")
    add("--samples", type=int, default=3, help="number of sequences shown, evenly spread")
    add("--sequence", type=int, nargs="+", help="numbers of the sequences shown instead")
    add("--max-tokens", type=int, default=64, help="tokens shown of each")
    add("--tokenizer-type", help=f"one of {', '.join(TOKENIZER_TYPES)}; none shows ids only")
    add("--tokenizer-model", help="SentencePiece model, tiktoken file or Hugging Face folder")
    add("--vocab-file", help="vocab.json of GPT2BPETokenizer")
    add("--merge-file", help="merges.txt of GPT2BPETokenizer")
    add("--vocab-size", type=int, help="number of ids of NullTokenizer or TikTokenizer")
    add("--tiktoken-pattern", help="v1 or v2")
    args = parser.parse_args(argv)
    for name in ("samples", "max_tokens"):
        if getattr(args, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must be 0 or more")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Inspect a dataset; a malformed one ends with one line and status 2."""
    args = parse_args(argv)
    with user_errors():
        dataset = IndexedDataset(args.prefix)
        tokenizer = build_tokenizer(args) if args.tokenizer_type else None
        count = len(dataset)
        numbers = args.sequence
        if numbers is None:
            numbers = np.unique(np.linspace(0, count - 1, args.samples, dtype=np.int64)).tolist()
        for number in numbers:
            if not 0 <= number < count:
                raise ValueError(f"sequence {number} does not exist; there are 0 to {count - 1}")
        for lines in (summary(dataset), samples(dataset, numbers, tokenizer, args.max_tokens)):
            for line in lines:
                sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
