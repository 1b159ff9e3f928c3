# SPDX-License-Identifier: Apache-2.0
"""From JSON lines to documents of tokens: what the preprocessing tool does to a stretch of lines.

Lines travel to worker processes and tokens back in stretches of about a megabyte, as bytes and
arrays, because moving Python objects between processes costs more than encoding them.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.backend import bars
from mindspeed_ms.data.indexed_dataset import DType
from mindspeed_ms.data.token_check import first_outside
from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.data.tokenizers.text_sources import Kind, Unit, json_lines, kind_of
from mindspeed_ms.data.tokenizers.tokenizer import Tokenizer
from mindspeed_ms.files.regular_file import open_regular

CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 30
"""Longest line: a small compressed file can hold one without end."""
_SPLIT_CHARACTERS = 1_000_000
"""Longest text that is split into sentences in one go, as in Megatron."""

Splitter = Callable[[str], Sequence[str]]
"""Text -> sentences."""


class Chunk(NamedTuple):
    """Some lines of the input."""

    path: str
    first_line: int
    """Number of the first line within the file, from 1."""

    first_document: int
    """Number of the first line over all files, from 0."""

    lines: bytes
    position: int
    """Bytes read of this and the earlier files; of compressed ones, compressed bytes."""

    def placed_lines(self) -> list[tuple[str, bytes]]:
        """(place, for messages; the line without its end) of every line."""
        lines = self.lines.split(b"\n")
        if not lines[-1]:  # what follows the last line end is no line
            lines.pop()
        return [
            (f"line {number} of {self.path}", line)
            for number, line in enumerate(lines, self.first_line)
        ]


class Documents(NamedTuple):
    """Arguments of ``IndexedDatasetBuilder.add_documents``."""

    tokens: NDArray
    lengths: NDArray[np.int32]
    sequences_per_document: NDArray[np.int64]


class EncodedChunk(NamedTuple):
    """The documents of a chunk, by (partition, number of the key)."""

    documents: dict[tuple[int, int], Documents]
    num_documents: int
    num_bytes: int
    position: int
    num_characters: int = 0
    """Of the texts that were encoded."""


class _Collector:
    """Gathers documents of one partition and key."""

    def __init__(self, dtype: np.dtype, vocab_size: int) -> None:
        self._dtype, self._vocab_size = dtype, vocab_size
        self._tokens: list[int] = []
        self._lengths: list[int] = []
        self._sequences: list[int] = []

    def add(self, sequences: Sequence[Sequence[int]]) -> None:
        """Add one document."""
        for sequence in sequences:
            self._tokens += sequence
            self._lengths.append(len(sequence))
        self._sequences.append(len(sequences))

    def documents(self) -> Documents:
        """What was added, as arrays."""
        ids = np.array(self._tokens, dtype=np.int64)
        if first_outside(ids, self._vocab_size) is not None:
            raise ValueError(
                f"token ids {ids.min()} to {ids.max()} do not fit the vocabulary of "
                f"{self._vocab_size}; check the tokenizer"
            )
        return Documents(
            ids.astype(self._dtype),
            np.array(self._lengths, dtype=np.int32),
            np.array(self._sequences, dtype=np.int64),
        )


class Encoder:
    """Encodes lines.

    Args:
        tokenizer: gives ids and the end-of-document token.
        json_keys: keys whose texts are encoded.
        is_eod_appended: end each document that is not empty with that token.
        splitter: cuts a text into sentences; None keeps it whole.
        num_partitions: parts the documents are dealt to.
        partition_size: documents of each part; None deals them one by one in turn.

    Raises:
        ValueError: the tokenizer has no end-of-document token to append.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        json_keys: Sequence[str],
        *,
        is_eod_appended: bool = False,
        splitter: Splitter | None = None,
        num_partitions: int = 1,
        partition_size: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        # Whoever encodes lines does so in its last process.
        self._tokenize = getattr(tokenizer, "tokenize_quickly", tokenizer.tokenize)
        self._json_keys = json_keys
        self._splitter = splitter
        self._num_partitions = num_partitions
        self._partition_size = partition_size
        self._dtype = np.dtype(DType.optimal_dtype(tokenizer.vocab_size))
        self._ending = [tokenizer.eod] if is_eod_appended else []
        self._num_characters = 0

    def encode_chunk(self, chunk: Chunk) -> EncodedChunk:
        """Encode the lines of a chunk.

        Raises:
            ValueError: a line is no JSON object in UTF-8, or a key is missing or holds no text.
        """
        collectors: dict[tuple[int, int], _Collector] = {}
        self._num_characters = 0
        lines = chunk.placed_lines()
        for number, (where, line) in enumerate(lines, chunk.first_document):
            partition = self._partition_of(number)
            for key, document in enumerate(self._encode_line(line, where)):
                place = (partition, key)
                if place not in collectors:
                    collectors[place] = _Collector(self._dtype, self._tokenizer.vocab_size)
                collectors[place].add(document)
        documents = {place: collector.documents() for place, collector in collectors.items()}
        return EncodedChunk(
            documents, len(lines), len(chunk.lines), chunk.position, self._num_characters
        )

    def _partition_of(self, document: int) -> int:
        if self._partition_size is not None:
            return document // self._partition_size
        return document % self._num_partitions

    def _encode_line(self, line: bytes, where: str) -> list[list[list[int]]]:
        """The sequences of each key."""
        documents = []
        for texts in texts_of_line(line, where, self._json_keys):
            if self._splitter is not None:
                texts = self._split("".join(texts))
            self._num_characters += sum(map(len, texts))
            try:
                parts = [part for part in map(self._tokenize, texts) if part]
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(f"{where} cannot be encoded ({error})") from error
            if parts:
                parts[-1] = [*parts[-1], *self._ending]
            documents.append(parts)
        return documents

    def _split(self, text: str) -> list[str]:
        assert self._splitter is not None, "called with a splitter only"
        starts = range(0, len(text), _SPLIT_CHARACTERS)
        pieces = (self._splitter(text[start : start + _SPLIT_CHARACTERS]) for start in starts)
        return [sentence for piece in pieces for sentence in piece]


def texts_of_line(line: bytes, where: str, keys: Sequence[str]) -> list[Sequence[str]]:
    """Texts of each key of a line: a string is one, a list may hold several.

    Args:
        line: one JSON object.
        where: its place, for messages.
        keys: that are read.

    Raises:
        ValueError: it is no JSON object in UTF-8, or a key is missing or holds no text.
    """
    try:
        document = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is not JSON in UTF-8 ({error}); each line must be one JSON object"
        ) from error
    if not isinstance(document, dict):
        raise ValueError(
            f"{where} is a JSON {type(document).__name__}; each line must be one object"
        )
    texts: list[Sequence[str]] = []
    for key in keys:
        if key not in document:
            raise ValueError(
                f"{where} has no key {key!r}, only {sorted(document)}; set --json-keys"
            )
        value = document[key]
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(
                f"{where} holds no text under {key!r}; the value must be a string or a list "
                "of strings"
            )
        texts.append(parts)
    return texts


def _blocks(path: str, size: int) -> Iterator[tuple[bytes, int]]:
    """The bytes of a file, unpacked if it is compressed, and how many of the file were read.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or is not wholly there.
    """
    with open_regular(path) as raw:
        stream: Any = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
        try:
            while block := stream.read(size):
                yield block, raw.tell()
        except (EOFError, zlib.error) as error:
            raise ValueError(f"{path} is cut off or damaged ({error}); copy it again") from None


def count_documents(path: str, keys: Sequence[str] = ("text",), unit: Unit = "file") -> int:
    """Documents of a file; a line without a line end at the end counts too."""
    kind = kind_of(path)
    if kind != "lines":
        return sum(lines.count(b"\n") for lines, _ in json_lines(path, kind, keys, unit))
    count, last = 0, b"\n"
    for block, _ in _blocks(path, 1 << 22):
        count += block.count(b"\n")
        last = block[-1:]
    return count + (last != b"\n")


def read_chunks(
    paths: Sequence[str],
    chunk_bytes: int = CHUNK_BYTES,
    keys: Sequence[str] = ("text",),
    unit: Unit = "file",
) -> Iterator[Chunk]:
    """Whole lines of the files, about ``chunk_bytes`` at a time.

    Args:
        paths: files of any kind that ``text_sources`` reads.
        chunk_bytes: size of a chunk.
        keys: columns of tables.
        unit: what of a plain text is a document.

    Raises:
        ValueError: a file is damaged, or a line has no end within ``MAX_LINE_BYTES``.
    """
    document, base = 0, 0
    for path in paths:
        kind = kind_of(path)
        if kind != "lines":
            for chunk in _chunks_of(path, kind, keys, unit, chunk_bytes):
                chunk = chunk._replace(first_document=document, position=base + chunk.position)
                document += chunk.lines.count(b"\n")
                yield chunk
            base += os.path.getsize(path)
            continue
        line, rest, position = 1, [b""], 0
        for block, position in _blocks(path, chunk_bytes):
            head, found, tail = block.rpartition(b"\n")
            if not found:
                rest.append(tail)
                if sum(map(len, rest)) > MAX_LINE_BYTES:
                    raise ValueError(f"line {line} of {path} has more than {MAX_LINE_BYTES} bytes")
                continue
            lines = b"".join([*rest, head, found])
            rest = [tail]
            count = lines.count(b"\n")
            yield Chunk(path, line, document, lines, base + position)
            line, document = line + count, document + count
        if any(rest):
            yield Chunk(path, line, document, b"".join(rest), base + position)
            document += 1
        base += os.path.getsize(path)


def _chunks_of(
    path: str, kind: Kind, keys: Sequence[str], unit: Unit, chunk_bytes: int
) -> Iterator[Chunk]:
    """Chunks of a file that is not of JSON lines."""
    parts: list[bytes] = []
    line, position, size = 1, 0, 0
    for lines, position in json_lines(path, kind, keys, unit):
        parts.append(lines)
        size += len(lines)
        if size >= chunk_bytes:
            joined = b"".join(parts)
            yield Chunk(path, line, 0, joined, position)
            line, parts, size = line + joined.count(b"\n"), [], 0
    if parts:
        yield Chunk(path, line, 0, b"".join(parts), position)


def load_splitter(language: str, is_keeping_newlines: bool) -> Splitter:
    """NLTK's sentence splitter, from its local data.

    Raises:
        RuntimeError: nltk is not installed.
        ValueError: its data for this language is not there.
    """
    punkt = optional_libraries.load("nltk.tokenize.punkt", "--split-sentences")
    try:
        splitter = punkt.PunktTokenizer(language)
    except LookupError as error:
        raise ValueError(
            f"nltk has no data to split {language!r} into sentences; put tokenizers/punkt_tab/"
            f"{language} into a folder named by NLTK_DATA"
        ) from error
    if is_keeping_newlines:
        splitter._lang_vars = _keeping_newlines(punkt.PunktLanguageVars)()
    return splitter.tokenize


def _keeping_newlines(base: type) -> type:
    """NLTK's rules with the blanks behind a sentence counted as part of it."""
    pattern = r"""
        %(SentEndChars)s             # a possible end of a sentence
        \s*                          # blanks stay with the sentence they follow
        (?=(?P<after_tok>
            %(NonWord)s              # other punctuation
            |
            (?P<next_tok>\S+)        # or the next word
        ))"""
    return type("KeepingNewlines", (base,), {"_period_context_fmt": pattern})


class Progress:
    """Counts what was read, and says so every ``interval`` documents.

    On a terminal it is a bar; elsewhere a line each time.
    """

    def __init__(self, paths: Sequence[str], interval: int, logger: logging.Logger) -> None:
        self.num_documents = 0
        self.num_tokens = 0
        self.num_characters = 0
        self._num_bytes = 0
        self._total = sum(os.path.getsize(path) for path in paths)
        self._position = 0
        self._interval = interval
        self._next = interval
        self._logger = logger
        self._start = time.monotonic()
        self._shown = ExitStack()
        self._bar = self._shown.enter_context(
            bars.bar("preprocessing", self._total, "B", is_kept=True)
        )

    def add(self, chunk: EncodedChunk) -> None:
        """Count a chunk."""
        self.num_documents += chunk.num_documents
        self.num_tokens += sum(len(documents.tokens) for documents in chunk.documents.values())
        self.num_characters += chunk.num_characters
        self._num_bytes += chunk.num_bytes
        self._bar.update(chunk.position - self._position)
        self._position = chunk.position
        if self.num_documents >= self._next:
            self._next = self.num_documents + self._interval
            self._show()

    def end(self) -> None:
        """Say the last numbers."""
        self._show()
        self._shown.close()

    def _show(self) -> None:
        if self._bar is bars.SILENT:
            self._logger.info("%s", self.line())
            return
        speed = self.num_tokens / max(time.monotonic() - self._start, 1e-9)
        self._bar.tell(documents=f"{self.num_documents:,}", tokens_per_s=f"{speed:,.0f}")

    def line(self) -> str:
        """Documents, speed and time left."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        left = seconds * (self._total / max(self._position, 1) - 1)
        return (
            f"Processed {self.num_documents} documents ({self.num_documents / seconds:.1f} docs/s, "
            f"{self._num_bytes / seconds / 2**20:.2f} MB/s, {self.num_tokens / seconds:.0f} "
            f"tokens/s, {max(left, 0.0):.0f} s left)."
        )
