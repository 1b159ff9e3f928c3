# SPDX-License-Identifier: Apache-2.0
"""Text to token files on the parts of Megatron core: the other side of ``preprocessing.py``.

    python benchmarks/megatron_preprocess.py corpus.jsonl PREFIX sentencepiece tok.model 2

Megatron's own tool is no part of its package. This one does what its documentation tells: a pool of
processes, each with a tokenizer of its own, is fed single lines of JSON, 32 at a time, and hands
lists of token ids back, which Megatron core's ``IndexedDatasetBuilder`` writes document by document
in the order of the lines, each with the end-of-document token.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

LINES_AT_A_TIME = 32


class Encoder:
    """What a process of the pool knows."""

    tokenize: Callable[[str], list[int]]
    eod: int

    def __init__(self, kind: str, model: str) -> None:
        self.kind, self.model = kind, model

    def start(self) -> None:
        """Make the tokenizer; called once in every process."""
        Encoder.tokenize, Encoder.eod, _ = tokenizer_of(self.kind, self.model)

    def encode(self, line: str) -> list[int]:
        """Token ids of a line of JSON."""
        ids = Encoder.tokenize(json.loads(line)["text"])
        if ids:
            ids.append(Encoder.eod)
        return ids


def tokenizer_of(kind: str, model: str) -> tuple[Any, int, int]:
    """(text -> ids, end-of-document token, size of the vocabulary).

    The special tokens that Megatron adds to a SentencePiece model are not looked for in the text,
    which saves this side a little.
    """
    if kind == "sentencepiece":
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_file=model)
        pieces = processor.get_piece_size()
        known = {processor.id_to_piece(number) for number in range(pieces)}
        before = sum(name not in known for name in ("<CLS>", "<SEP>"))
        return processor.encode_as_ids, pieces + before, pieces + 16
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return lambda text: tokenizer(text).input_ids, tokenizer.eos_token_id, len(tokenizer)


def main() -> None:
    """Write the dataset."""
    source, prefix, kind, model, workers = sys.argv[1:]
    encoder = Encoder(kind, model)
    dtype = DType.optimal_dtype(tokenizer_of(kind, model)[2])
    builder = IndexedDatasetBuilder(f"{prefix}_text_document.bin", dtype=dtype)
    with open(source, encoding="utf-8") as lines:
        pool = multiprocessing.Pool(int(workers), initializer=encoder.start)
        for ids in pool.imap(encoder.encode, lines, LINES_AT_A_TIME):
            if ids:
                builder.add_document(ids, [len(ids)])
        pool.close()
        pool.join()
    builder.finalize(f"{prefix}_text_document.idx")
    written = np.memmap(f"{prefix}_text_document.bin", dtype, "r")
    sys.stdout.write(f"{written.size}\n")


if __name__ == "__main__":
    main()
