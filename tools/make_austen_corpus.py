# SPDX-License-Identifier: Apache-2.0
"""Write the corpus of `data/austen`: three novels by Jane Austen, from Debian's package of them.

    apt-get download r-cran-janeaustenr
    python tools/make_austen_corpus.py r-cran-janeaustenr_*_all.deb data/austen

Writes text/NAME.txt (a paragraph per line, as in the book), tok.model (SentencePiece) and the token
files, a document per chapter. Text and tokens are the same on every machine; the tokenizer depends
on the version of sentencepiece it is trained with, so an existing tok.model is kept.
"""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder
from mindspeed_ms.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from mindspeed_ms.data.tokenizers.sentencepiece_training import train_sentencepiece
from mindspeed_ms.files.regular_file import read_bytes
from mindspeed_ms.files.whole import appears_whole, write_text
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

BOOKS = {
    "PRIDE AND PREJUDICE": "pride_and_prejudice",
    "SENSE AND SENSIBILITY": "sense_and_sensibility",
    "PERSUASION": "persuasion",
}
"""Title, as the first line has it in capitals -> name of the file."""
VOCAB_SIZE = 2043  # five special tokens of SentencePieceTokenizer make 2048
DATABASE = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
STRINGS, STRING = 16, 9
"""R's codes of a vector of strings and of one string."""


def _members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Files of a Debian package, which is an `ar` archive: headers of 60 bytes, even offsets."""
    if not archive.startswith(b"!<arch>\n"):
        raise ValueError("this is no Debian package; `apt-get download r-cran-janeaustenr` gets it")
    at = 8
    while at < len(archive):
        name, size = archive[at : at + 16].decode().strip(), int(archive[at + 48 : at + 58])
        yield name, archive[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


def _database(package: Path) -> bytes:
    """R's file of the novels out of the package."""
    for name, content in _members(read_bytes(package)):
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content)) as files:
                found = [member for member in files if member.name == DATABASE]
                member = files.extractfile(found[0]) if found else None
                if member is not None:
                    return member.read()
    raise ValueError(f"{package} has no {DATABASE}; it is not r-cran-janeaustenr")


def strings(stream: bytes) -> list[str]:
    """A vector of strings as R writes it (`serialize`, binary, version 2 or 3).

    Raises:
        ValueError: the stream holds something else.
    """
    if not stream.startswith(b"X\n"):
        raise ValueError("no binary stream of R")
    version = struct.unpack_from(">i", stream, 2)[0]
    at = 14
    if version == 3:  # the writer's encoding follows
        at += 4 + struct.unpack_from(">i", stream, at)[0]
    flags, count = struct.unpack_from(">ii", stream, at)
    if flags & 0xFF != STRINGS:
        raise ValueError(f"R's type {flags & 0xFF}, not a vector of strings")
    at, found = at + 8, []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", stream, at)
        if flags & 0xFF != STRING or length < 0:
            raise ValueError("a missing value among the strings")
        found.append(stream[at + 8 : at + 8 + length].decode("utf-8"))
        at += 8 + length
    return found


def novels(database: bytes) -> Iterator[list[str]]:
    """Lines of every novel: blocks of four bytes (a length) and a zlib stream."""
    while database:
        block = zlib.decompressobj()
        yield strings(block.decompress(database[4:]))
        database = block.unused_data


def paragraphs(lines: Sequence[str]) -> Iterator[str]:
    """Join the lines of a paragraph; an empty line ends one."""
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        text = " ".join(block.split())
        if text:
            yield text


def chapters(text: str) -> Iterator[str]:
    """Documents of one novel's file; what is before the first chapter (the title) is left out."""
    yield from re.split(r"(?mi)^(?=chapter \d+$)", text)[1:]


def train_tokenizer(text: str) -> bytes:
    """Train the SentencePiece model on the text; a newline is a piece, so none is lost."""
    return train_sentencepiece(
        text.splitlines(),
        VOCAB_SIZE,
        character_coverage=1.0,
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n"],
        num_threads=1,
    )


def write_tokens(folder: Path) -> None:
    """Write austen_text_document.bin and .idx from the texts and the tokenizer of the folder."""
    tokenizer = SentencePieceTokenizer(str(folder / "tok.model"))
    prefix = folder / "austen_text_document"
    with IndexedDatasetBuilder(f"{prefix}.bin", np.uint16) as builder:
        for name in BOOKS.values():
            for chapter in chapters((folder / "text" / f"{name}.txt").read_text("utf-8")):
                ids = [*tokenizer.tokenize(chapter), tokenizer.eod]
                builder.add_document(ids, [len(ids)])
        builder.finalize(f"{prefix}.idx")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = Parser.of(__doc__)
    parser.add_argument("package", type=Path, help="r-cran-janeaustenr_*_all.deb")
    parser.add_argument("output", type=Path, help="directory; created when missing")
    arguments = parser.parse_args(argv)
    with user_errors():
        for lines in novels(_database(arguments.package)):
            name = BOOKS.get(lines[0].upper())
            if name:
                text = "\n".join(paragraphs(lines)) + "\n"
                write_text(arguments.output / "text" / f"{name}.txt", text)
        model = arguments.output / "tok.model"
        if not model.is_file():
            texts = (arguments.output / "text" / f"{name}.txt" for name in BOOKS.values())
            trained = train_tokenizer("".join(path.read_text("utf-8") for path in texts))
            with appears_whole(model) as unfinished:
                unfinished.write_bytes(trained)
        write_tokens(arguments.output)


if __name__ == "__main__":
    main()
