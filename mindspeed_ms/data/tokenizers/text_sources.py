# SPDX-License-Identifier: Apache-2.0
"""Text of a user's own: plain text, folders, JSON lines, parquet, saved Hugging Face datasets.

Whatever a file is, its documents are handed on as JSON lines, which is what the encoders read.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.files.content import taken_apart
from mindspeed_ms.files.regular_file import open_regular, read_json, require_regular

logger = logging.getLogger(__name__)

Unit = Literal["file", "paragraph", "line"]
"""What of a plain text is a document."""

Kind = Literal["text", "lines", "parquet", "arrow"]

ENDINGS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".json": "lines",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Ending of a file, before ``.gz`` -> what is in it. Files of another ending are JSON lines when
they are named, and passed over in folders."""

PIECE = 1 << 14
"""Characters of a plain text after which a new sequence begins, with the next line: a book is not
one item of a shuffled set, of which nothing could be kept for validation."""

_BLOCK = 1 << 20
_ROWS = 1024
"""Of a table that are read at a time."""

_NOTES = ("dataset_dict.json", "state.json", "dataset_info.json")
"""Files of a saved dataset that hold no text."""


def find_inputs(patterns: str | Sequence[str]) -> list[str]:
    """Files of paths, folders and patterns; those of a folder or a pattern by their names.

    Of folders, hidden files and folders and what is no text are left out; a line says so.

    Raises:
        FileNotFoundError: a path, or a pattern, leads to no file.
    """
    found: list[str] = []
    passed_over = _PassedOver()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not paths:
            raise FileNotFoundError(f"{pattern}: no such file, and no file matches it as a pattern")
        for path in paths:
            if not os.path.isdir(path):
                found.append(path)
                continue
            files = _files_of(Path(path), passed_over, {os.path.realpath(path)})
            if not files:
                raise FileNotFoundError(f"{path} holds no file that ends in {', '.join(ENDINGS)}")
            found += files
    passed_over.tell()
    return found


@dataclass(slots=True)
class _PassedOver:
    """What of folders is not read."""

    hidden: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    """Links to folders that are read already."""
    endings: Counter[str] = field(default_factory=Counter)
    """Ending -> files."""

    def tell(self) -> None:
        """Say it in one line."""
        parts = []
        if self.hidden:
            parts.append(f"{len(self.hidden)} hidden ({self.hidden[0]})")
        if self.again:
            parts.append(f"{len(self.again)} links to folders read already ({self.again[0]})")
        if self.endings:
            kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(self.endings.items()))
            parts.append(f"{self.endings.total()} that hold no text by their ending ({kinds})")
        if parts:
            logger.warning("files and folders left out of the input: %s", "; ".join(parts))


def _files_of(folder: Path, passed_over: _PassedOver, seen: set[str]) -> list[str]:
    """Texts of a folder and those in it; ``seen``: folders that were met, as links may lead back.

    Of those a link leads to again only the first is read: links between folders give ways without
    number.
    """
    if (folder / "state.json").is_file():  # datasets.Dataset.save_to_disk
        return _files_of_saved(folder)
    found: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.name in _NOTES:
            continue
        if path.name.startswith("."):
            passed_over.hidden.append(str(path))
        elif path.is_dir():
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                found += _files_of(path, passed_over, seen)
            elif path.is_symlink():
                passed_over.again.append(str(path))
        elif _ending(path.name) in ENDINGS:
            found.append(str(path))
        else:
            passed_over.endings[_ending(path.name) or "without"] += 1
    return found


def _files_of_saved(folder: Path) -> list[str]:
    """Files of a dataset that was saved, by its own list."""
    state = folder / "state.json"
    with taken_apart(state, "the list of a saved dataset's files"):
        names = [item["filename"] for item in read_json(state).get("_data_files") or []]
        strange = [name for name in names if Path(name).name != name]
        if strange:
            raise ValueError(f"{state} names {strange[0]!r:.80}, which is no file of its folder")
        return [str(folder / name) for name in names]


def _ending(name: str) -> str:
    return os.path.splitext(name.removesuffix(".gz"))[1].lower()


def kind_of(path: str) -> Kind:
    """What is in a file, by its ending; a text whose first line is a JSON object is JSON lines."""
    kind = ENDINGS.get(_ending(path), "lines")
    if kind != "text":
        return kind
    with _opened(path) as stream:
        try:
            first = stream.readline(_BLOCK).strip()
        except (EOFError, OSError, zlib.error):  # told by who reads it
            return "text"
    if not first.startswith(b"{"):
        return "text"
    try:
        return "lines" if isinstance(json.loads(first), dict) else "text"
    except ValueError:
        return "text"


def _opened(path: str) -> Any:
    """Bytes of a file, unpacked if it is compressed."""
    stream = open_regular(path)
    return gzip.GzipFile(fileobj=stream) if path.endswith(".gz") else stream


def json_lines(
    path: str, kind: Kind, keys: Sequence[str], unit: Unit
) -> Iterator[tuple[bytes, int]]:
    """Documents of a text, parquet or arrow file as JSON lines, and how far into it they are.

    Args:
        path: the file.
        kind: what is in it.
        keys: columns that are read; a text serves the first.
        unit: what of a text is a document.

    Raises:
        ValueError: the file is damaged, is not UTF-8, or has no such column.
        RuntimeError: the library that reads it is not installed.
    """
    size = os.path.getsize(path)
    if kind == "text":
        for pieces, share in _text_documents(path, unit):
            value = pieces[0] if len(pieces) == 1 else pieces
            document = dict.fromkeys(keys, "") | {keys[0]: value}
            yield _line(document, path), int(share * size)
        return
    for rows, share in _tables(path, kind, keys):
        yield b"".join(_line(row, path) for row in rows), int(share * size)


def records_of(path: str) -> Iterator[dict[str, Any]]:
    """Records of a file: rows of a table, or JSON objects, one a line or all in one list.

    Raises:
        ValueError: the file is damaged, or holds anything else; names the record.
        RuntimeError: the library that reads it is not installed.
    """
    kind = ENDINGS.get(_ending(path), "lines")
    if kind in ("parquet", "arrow"):
        for rows, _ in _tables(path, kind, None):
            yield from rows
        return
    found: Iterator[Any]
    try:
        with _opened(path) as stream:
            first = stream.read(_BLOCK).lstrip()
        if first.startswith(b"["):
            with _opened(path) as stream:
                found = iter(json.loads(stream.read().decode("utf-8-sig")))
        else:
            found = _objects_of_lines(path)
        for number, record in enumerate(found, 1):
            if not isinstance(record, dict):
                raise ValueError(f"record {number} is a {type(record).__name__}, not an object")
            yield record
    except (ValueError, EOFError, zlib.error, RecursionError) as error:
        raise ValueError(
            f"{path} is no JSON in UTF-8, with an object for each record ({error})"
        ) from None


def _objects_of_lines(path: str) -> Iterator[Any]:
    with _opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def _line(document: dict[str, Any], path: str) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False).encode() + b"\n"
    except TypeError as error:
        raise ValueError(f"{path} has a column that holds no texts ({error})") from None


def _text_documents(path: str, unit: Unit) -> Iterator[tuple[list[str], float]]:
    """Documents of a text, each in pieces, and the share of the file that is read."""
    if unit == "file":
        pieces = list(_sequences(piece for piece, _ in _pieces(path)))
        if any(piece.strip() for piece in pieces):
            yield pieces, 1.0
        return
    rest = ""
    mark = "\n" if unit == "line" else "\n\n"
    for piece, share in _pieces(path):
        *whole, rest = (rest + piece).split(mark)
        for text in filter(str.strip, whole):
            yield [text.strip("\n")], share
    if rest.strip():
        yield [rest.strip("\n")], 1.0


def _sequences(pieces: Iterator[str]) -> Iterator[str]:
    """A text in sequences that end with a line, as far as there are lines."""
    rest = ""
    for piece in pieces:
        rest, start = rest + piece, 0
        while end := rest.find("\n", start + PIECE) + 1:
            yield rest[start:end]
            start = end
        rest = rest[start:]
        if len(rest) >= _BLOCK:
            yield rest
            rest = ""
    if rest:
        yield rest


def _pieces(path: str) -> Iterator[tuple[str, float]]:
    """A text in pieces that end with a line, as far as there are lines; and the share read."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    size, rest, read = max(1, os.path.getsize(path)), "", 0
    with open_regular(path) as raw:
        stream: Any = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
        try:
            while block := stream.read(_BLOCK):
                text = rest + decoder.decode(block)
                read += len(block)
                head, found, rest = text.rpartition("\n")
                if not found and len(rest) >= _BLOCK:
                    head, rest = rest, ""
                if head or found:
                    yield head + found, min(1.0, raw.tell() / size)
            rest += decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 text (near byte {read + error.start}: {error.reason}); "
                "convert it, for example with iconv -t UTF-8"
            ) from None
        except (EOFError, zlib.error) as error:
            raise ValueError(f"{path} is cut off or damaged ({error}); copy it again") from None
    if rest:
        yield rest, 1.0


def _tables(
    path: str, kind: Kind, keys: Sequence[str] | None
) -> Iterator[tuple[list[dict[str, Any]], float]]:
    """Rows of a table, in groups, and the share of the file that is read; None: all columns."""
    arrow = optional_libraries.load("pyarrow", f"{path} is a table, and reading it", "text")
    size = max(1, require_regular(path))
    faults = (arrow.ArrowException, OSError, UnicodeError, OverflowError, MemoryError)
    try:
        with arrow.OSFile(path) as stream:
            for batch in _batches(path, kind, keys, stream):
                yield _rows(path, batch), min(1.0, stream.tell() / size)
    except faults as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is damaged or no such table ({reason}); copy it again") from None


def _batches(path: str, kind: Kind, keys: Sequence[str] | None, stream: Any) -> Iterator[Any]:
    """Rows of a table's file as the library reads them, the asked columns alone."""
    if kind == "parquet":
        table = optional_libraries.load("pyarrow.parquet", path, "text").ParquetFile(stream)
        columns = _known(path, keys, table.schema_arrow.names)
        yield from table.iter_batches(batch_size=_ROWS, columns=columns)
        return
    library = optional_libraries.load("pyarrow.ipc", path, "text")
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    if is_file:
        reader = library.open_file(stream)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        reader = batches = library.open_stream(stream)
    chosen = _known(path, keys, reader.schema.names)
    for batch in batches:
        picked = batch.select(chosen)
        for start in range(0, picked.num_rows, _ROWS):
            yield picked.slice(start, _ROWS)


def _rows(path: str, batch: Any) -> list[dict[str, Any]]:
    """Rows of a batch, whose inner places are looked at first: wrong ones end an interpreter.

    Raises:
        ValueError: they are wrong, or a value is none that Python has.
    """
    batch.validate(full=True)
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} holds a value that cannot be read: {reason}") from None


def _known(path: str, keys: Sequence[str] | None, columns: Sequence[str]) -> list[str]:
    if keys is None:
        return list(columns)
    missing = [key for key in keys if key not in columns]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}, only {sorted(columns)}; set --json-keys"
        )
    return list(keys)
