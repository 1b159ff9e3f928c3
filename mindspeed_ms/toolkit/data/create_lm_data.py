# SPDX-License-Identifier: Apache-2.0
"""Texts to rows of tokens in MindRecord, as trainers of MindSpore read them.

python -m mindspeed_ms.toolkit.data.create_lm_data --input_file wiki.train.tokens \
    --output_file train/wiki.mindrecord --tokenizer gpt2 --seq_length 1024

Each row holds ``seq_length + 1`` ids in the column ``input_ids``: a token at a cut is the last
label of one row and the first input of the next. The end of the last text that fills no row is left
out, and said.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    import numpy as np
    from mindspore.mindrecord import FileWriter
    from mindspore.mindrecord.common.exceptions import MindRecordException
    from numpy.typing import NDArray

    from mindspeed_ms.toolkit.data.conversations import Writer
    from mindspeed_ms.toolkit.data.local import find_data
    from mindspeed_ms.toolkit.data.sources import read_texts
    from mindspeed_ms.toolkit.launch.command import Parser
    from mindspeed_ms.toolkit.tokenization.auto import AutoTokenizer
    from mindspeed_ms.training.entry import user_errors

_BLOCK = 1024
"""Rows that are written at a time."""


def rows_of(files: Sequence[str], writer: Writer, seq_length: int) -> Iterator[NDArray[np.int32]]:
    """Rows [seq_length + 1] of texts, one after another, each ended by the tokenizer's token.

    Args:
        files: ``.txt``, ``.tokens``, ``.json`` or ``.jsonl``.
        writer: turns texts into ids.
        seq_length: tokens of a sample.

    Raises:
        ValueError: a file that cannot be read.
    """
    waiting: list[int] = []
    for record in read_texts(files, "--input_file"):
        ids, _ = writer.write(record)
        waiting += ids
        first = 0
        while len(waiting) - first > seq_length:
            yield np.array(waiting[first : first + seq_length + 1], np.int32)
            first += seq_length
        del waiting[:first]


def write_records(
    rows: Iterator[NDArray[np.int32]], path: Path, seq_length: int, shards: int
) -> int:
    """Write rows to MindRecord; return their number.

    Nothing is touched before there is a row, and nothing half-written is left.

    Raises:
        ValueError: the files cannot be written.
    """
    first = next(rows, None)
    if first is None:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or path.is_symlink():
        raise ValueError(f"--output_file {path} is a folder or a link; name a file")
    try:
        return _write_all(chain([first], rows), path, seq_length, shards)
    except BaseException as error:
        names = (path.name, *(f"{path.name}{number}" for number in range(shards)))
        for name in (name for base in names for name in (base, f"{base}.db")):
            path.with_name(name).unlink(missing_ok=True)
        if isinstance(error, MindRecordException | RuntimeError):
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"--output_file {path} cannot be written ({reason})") from None
        raise


def _write_all(rows: Iterable[NDArray[np.int32]], path: Path, seq_length: int, shards: int) -> int:
    records = FileWriter(str(path), shard_num=shards, overwrite=True)
    records.add_schema({"input_ids": {"type": "int32", "shape": [seq_length + 1]}}, "rows")
    count, block = 0, []
    for row in rows:
        block.append({"input_ids": row})
        count += 1
        if len(block) == _BLOCK:
            records.write_raw_data(block)
            block = []
    if block:
        records.write_raw_data(block)
    records.commit()
    return count


def main(words: Sequence[str] | None = None) -> int:
    """Read the words, write the records; return the exit status."""
    parser = Parser(prog="create_lm_data", description="Texts to rows of tokens in MindRecord.")
    parser.add_argument("--input_file", required=True, help="file, folder, or pattern of files")
    parser.add_argument("--output_file", required=True, help="the .mindrecord file to write")
    parser.add_argument("--tokenizer", required=True, help="name or folder")
    parser.add_argument("--seq_length", type=int, default=1024, help="tokens of a sample")
    parser.add_argument("--num_splits", type=int, default=1, help="files to write")
    given = parser.parse_args(sys.argv[1:] if words is None else list(words))
    with user_errors():
        if given.seq_length < 1 or given.num_splits < 1:
            raise ValueError("--seq_length and --num_splits must be at least 1")
        found = sorted(glob.glob(given.input_file)) or [given.input_file]
        files = [file for name in found for file in find_data(name, "--input_file")]
        writer = Writer(AutoTokenizer.from_pretrained(given.tokenizer))
        rows = rows_of(files, writer, given.seq_length)
        count = write_records(rows, Path(given.output_file), given.seq_length, given.num_splits)
        if not count:
            raise ValueError(f"{given.input_file} holds fewer than {given.seq_length + 1} tokens")
    sys.stdout.write(f"{count} rows of {given.seq_length + 1} tokens in {given.output_file}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
