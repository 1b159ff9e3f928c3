# SPDX-License-Identifier: Apache-2.0
"""Whether a MindRecord file is one, before MindSpore opens it: a damaged one ends its process.

Source: files that MindSpore 2.10 writes (version 3.0): a header of JSON, pages of blobs and of raw
rows, and beside it an SQLite table of the places of all rows.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.files.content import taken_apart
from mindspeed_ms.files.regular_file import json_object, open_regular, require_regular

_LENGTH = struct.Struct("<Q")
_LISTS = ("page", "schema", "shard_addresses")
_NUMBERS = ("header_size", "page_size", "shard_id")
_PAGE = ("page_id", "page_size", "page_type_id", "shard_id", "start_row_id", "end_row_id")
_TYPES = ("int32", "int64", "float32", "float64", "string", "bytes")
_PLACES = (
    "ROW_ID, PAGE_ID_RAW, PAGE_OFFSET_RAW, PAGE_OFFSET_RAW_END, "
    "PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END"
)


def check(path: str, column: str) -> None:
    """Look at a file and its table.

    Args:
        path: of one file.
        column: that is to be read.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: they are damaged, or no MindRecord file with that column.
    """
    size, table = require_regular(path), f"{path}.db"
    with taken_apart(path, f"a MindRecord file with a column {column!r}"):
        header = _header(path, size)
        _check_header(header, column)
    if not os.path.lexists(table):
        raise FileNotFoundError(f"{table} is missing beside {path}; copy both")
    require_regular(table)
    with taken_apart(table, "the table of a MindRecord file"):
        places, names = _table(table)
        if names != [Path(path).name]:
            raise ValueError(f"it is of {names!r:.80}, not of {Path(path).name}")
        _check_places(header, places, size)
        _check_rows(path, header, places)


def _header(path: str, size: int) -> dict[str, Any]:
    with open_regular(path) as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size).ljust(_LENGTH.size, b"\0"))
        if not 0 < length <= size - _LENGTH.size:
            raise ValueError(f"its header claims {length} of {size} bytes")
        header = json_object(file.read(length), path)
    if length + _LENGTH.size > header["header_size"]:
        raise ValueError(f"its header claims {length} of {header['header_size']} bytes")
    return header


def _check_header(header: Mapping[str, Any], column: str) -> None:
    for name in ("index_fields", "statistics"):
        _require(isinstance(header[name], list | NoneType), name, header[name])
    for name in _NUMBERS:
        _require(_is_count(header[name]), name, header[name])
    _require(header["page_size"] > 0, "page_size", header["page_size"])
    for name in _LISTS:
        _require(isinstance(header[name], list) and header[name] != [], name, header[name])
    for page in header["page"]:
        for name in _PAGE:
            _require(_is_count(page[name]), name, page[name])
        _require(page["page_type"] in ("RAW_DATA", "BLOB_DATA"), "page_type", page["page_type"])
        groups = page["row_group_ids"]
        fits = all(_is_count(one["id"]) and _is_count(one["offset"]) for one in groups)
        _require(fits and isinstance(groups, list), "row_group_ids", groups)
    _require(all(isinstance(one, str) for one in header["shard_addresses"]), "shard_addresses", "")
    _require(str(header["version"]) in ("2.0", "3.0"), "version", header["version"])
    _require(len(header["schema"]) == 1, "schema", header["schema"])
    fields, blobs = header["schema"][0]["schema"], header["schema"][0].get("blob_fields", [])
    _require(isinstance(header["schema"][0]["desc"], str), "desc", "")
    for name, field in fields.items():
        _require(field["type"] in _TYPES, f"type of {name}", field["type"])
        shape = field.get("shape", [])
        _require(isinstance(shape, list) and all(type(n) is int for n in shape), "shape", shape)
    _require(all(name in fields for name in blobs), "blob_fields", blobs)
    _require(column in fields, "schema", list(fields))
    if column not in blobs or fields[column]["type"] not in ("int32", "int64"):
        raise ValueError(f"it holds {fields[column]['type']}, not arrays of whole numbers")


def _require(fits: bool, name: str, value: object) -> None:
    if not fits:
        raise ValueError(f"{name} is {value!r:.80}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _table(path: str) -> tuple[NDArray[np.int64], list[str]]:
    """Places of all rows, and the names of the files that the table is of."""
    uri = f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as table:
            (answer,) = table.execute("PRAGMA integrity_check(1)").fetchone()
            if answer != "ok":
                raise ValueError(str(answer))
            rows = table.execute(f"SELECT {_PLACES} FROM INDEXES ORDER BY ROW_ID").fetchall()
            names = [name for (name,) in table.execute("SELECT NAME FROM SHARD_NAME")]
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        raise ValueError(f"SQLite says: {error}") from None
    if any(type(value) is not int for row in rows for value in row):
        raise ValueError("a place is no whole number")
    return np.array(rows, np.int64).reshape(len(rows), -1), names


def _check_places(header: Mapping[str, Any], places: NDArray[np.int64], size: int) -> None:
    if not len(places):
        raise ValueError("it lists no row")
    if not np.array_equal(places[:, 0], np.arange(len(places))):
        raise ValueError("its rows do not count from 0 on")
    kinds = {page["page_id"]: page["page_type"] for page in header["page"]}
    for first, kind in ((1, "RAW_DATA"), (4, "BLOB_DATA")):
        page, begin, end = places[:, first : first + 3].T
        if any(kinds.get(int(one)) != kind for one in np.unique(page)):
            raise ValueError(f"it names pages of {kind} that the file has not")
        ends = header["header_size"] + page * header["page_size"] + end
        if (begin < 0).any() or (end < begin).any() or (end > header["page_size"]).any():
            raise ValueError(f"places of {kind} are outside of their pages")
        if (ends > size).any():
            raise ValueError(f"the file has {size} bytes, its rows need {int(ends.max())}")


def _check_rows(path: str, header: Mapping[str, Any], places: NDArray[np.int64]) -> None:
    """Each row of a page begins with its own length, and its arrays are as long as they say."""
    fields, blobs = header["schema"][0]["schema"], header["schema"][0].get("blob_fields", [])
    types = [fields[name]["type"] for name in blobs]
    data = np.memmap(path, np.uint8, "r")
    for first in (1, 4):
        page, begin, end = places[:, first : first + 3].T
        starts = header["header_size"] + page * header["page_size"] + begin
        for number, (start, size) in enumerate(zip(starts, end - begin, strict=True)):
            row = data[start : start + size]
            is_right = len(row) >= _LENGTH.size
            is_right = (
                is_right and _LENGTH.unpack(row[: _LENGTH.size].tobytes())[0] == size - _LENGTH.size
            )
            if is_right and first == _FIRST_OF_BLOB:
                is_right = _are_arrays(row[_LENGTH.size :], types)
            if not is_right:
                raise ValueError(f"row {number} of the file is not as long as its table says")


def _are_arrays(row: NDArray[np.uint8], types: Sequence[str]) -> bool:
    """Whether a row consists of arrays of some types; one stands without its length."""
    if len(types) == 1:
        return _is_array(row, types[0])
    at = 0
    for kind in types:
        if at + _LENGTH.size > len(row):
            return False
        size = int.from_bytes(row[at : at + _LENGTH.size].tobytes(), "big")
        at += _LENGTH.size + size
        if at > len(row) or not _is_array(row[at - size : at], kind):
            return False
    return at == len(row)


def _is_array(data: NDArray[np.uint8], kind: str) -> bool:
    """Whether bytes are an array.

    Whole numbers: how many there are (4 bytes), two bits for each that tell its bytes (1, 2, 4 or
    8), their bytes.
    """
    if kind not in ("int32", "int64"):
        return True
    if len(data) < _COUNT_BYTES:
        return False
    count = int.from_bytes(data[:_COUNT_BYTES].tobytes(), "big")
    told = data[_COUNT_BYTES : _COUNT_BYTES - (-count // 4)]
    if kind == "int32" and (told & (told >> 1) & 0x55).any():  # 8 bytes
        return False
    filled = -count % 4  # of the last byte, told to be one byte each
    return _COUNT_BYTES + len(told) + int(_BYTES[told].sum()) - filled == len(data)


_COUNT_BYTES = 4
_FIRST_OF_BLOB = 4
"""Column of a row's place among the blobs."""
_BYTES = np.array(
    [sum(1 << (told >> shift & 3) for shift in (0, 2, 4, 6)) for told in range(256)], np.int64
)
"""For a byte that tells of four numbers how many bytes they have."""
