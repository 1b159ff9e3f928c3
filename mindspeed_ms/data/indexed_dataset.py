# SPDX-License-Identifier: Apache-2.0
"""Reader and writer of token files: ``<prefix>.bin`` (tokens) and ``<prefix>.idx`` (where each is).

Layout of the .idx file, little endian, no padding, S sequences and D - 1 documents:

    9 bytes   b"MMIDIDX" and two zero bytes
    u64       version, 1
    u8        code of the token type, see DType
    u64       S
    u64       D
    int32[S]  tokens of each sequence
    int64[S]  byte offset of each sequence in the .bin file
    int64[D]  sequence number at which each document starts; the last entry is S
    int8[S]   optional, kind of each sequence (not used here)

Source: Megatron-LM core 0.12 ``data/indexed_dataset.py`` (file format).
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import Enum
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mindspeed_ms.data.object_store import RemoteFile, is_remote, local_copy
from mindspeed_ms.files.crc import crc32_of_file
from mindspeed_ms.files.regular_file import open_regular
from mindspeed_ms.files.whole import appears_whole, forget, name_it, unfinished_name

logger = logging.getLogger(__name__)

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
_CHECK_ROWS = 1 << 20
_COPY_BYTES = 1 << 24


class DType(Enum):
    """Token types and their codes in the .idx file."""

    uint8 = 1
    int8 = 2
    int16 = 3
    int32 = 4
    int64 = 5
    float64 = 6
    float32 = 7
    uint16 = 8

    @classmethod
    def code_from_dtype(cls, value: DTypeLike) -> int:
        """Code of a numpy type.

        Raises:
            ValueError: the format has no code for this type.
        """
        name = np.dtype(value).name
        if name not in cls.__members__:
            raise ValueError(
                f"token type {name} has no code in the .idx format; use one of "
                f"{', '.join(cls.__members__)}"
            )
        return cls[name].value

    @classmethod
    def dtype_from_code(cls, value: int) -> np.dtype:
        """Little-endian numpy type of a code.

        Raises:
            ValueError: unknown code.
        """
        known = {member.value: member.name for member in cls}
        if value not in known:
            raise ValueError(f"token type code {value} is unknown; known codes are {known}")
        return np.dtype(known[value]).newbyteorder("<")

    @classmethod
    def size(cls, key: int | DTypeLike) -> int:
        """Bytes of one token, from a code or a numpy type."""
        dtype = cls.dtype_from_code(key) if isinstance(key, int) else np.dtype(key)
        return dtype.itemsize

    @staticmethod
    def optimal_dtype(cardinality: int | None) -> type[np.uint16] | type[np.int32]:
        """Type in which tokens of a vocabulary are stored: uint16 below 65500 entries."""
        return np.uint16 if cardinality is not None and cardinality < 65500 else np.int32


def get_bin_path(path_prefix: str) -> str:
    """Path of the token file."""
    return f"{path_prefix}.bin"


def get_idx_path(path_prefix: str) -> str:
    """Path of the index file."""
    return f"{path_prefix}.idx"


class IndexedDataset:
    """Sequences of tokens on disk, read one at a time.

    Args:
        path_prefix: path without ``.bin`` and ``.idx``.
        mmap: map the token file into memory; otherwise each read is one system call, which some
            network file systems prefer. A file in object storage is read by ranges.
        object_storage_cache: folder for the indices of datasets in object storage.

    Raises:
        FileNotFoundError: one of the two files is missing.
        OSError: object storage does not give them.
        ValueError: the files are not a token file pair, are truncated, contradict each other or
            hold no token. The message names the file and what to do.
    """

    def __init__(
        self, path_prefix: str, mmap: bool = True, object_storage_cache: str | None = None
    ) -> None:
        self.path_prefix = str(path_prefix)
        self.mmap = mmap
        self._cache = object_storage_cache
        bin_path, self._idx_path = get_bin_path(self.path_prefix), get_idx_path(self.path_prefix)
        self._remote: RemoteFile | None = None
        if is_remote(self.path_prefix):
            self._idx_path = local_copy(self._idx_path, object_storage_cache)
            self._remote = RemoteFile(bin_path)
        else:
            self._require_files()
        index = _Index(self._idx_path)
        self.dtype = index.dtype
        self.sequence_lengths = index.sequence_lengths
        self.sequence_pointers = index.sequence_pointers
        self.document_indices = index.document_indices
        self._is_changed = False
        self._tokens: NDArray | None = None
        self._file: BufferedReader | None = None
        if self._remote is not None:
            self._bin_bytes = self._remote.size
        else:
            self._open(bin_path)
        index.check_against_bin(bin_path, self._bin_bytes)
        self.is_dense = index.is_dense
        """Whether the sequences lie one behind the other from the start of the .bin file."""

    def _open(self, bin_path: str) -> None:
        self._file = open_regular(bin_path)
        self._state = os.fstat(self._file.fileno())
        self._bin_bytes = self._state.st_size
        if self.mmap and self._bin_bytes >= self.dtype.itemsize:
            num_tokens = self._bin_bytes // self.dtype.itemsize
            tokens = np.memmap(self._file, dtype=self.dtype, mode="r", shape=(num_tokens,))
            self._tokens = np.asarray(tokens)

    def __reduce__(self) -> tuple[type[IndexedDataset], tuple[str, bool, str | None]]:
        return IndexedDataset, (self.path_prefix, self.mmap, self._cache)

    def __len__(self) -> int:
        return len(self.sequence_lengths)

    def __getitem__(self, idx: int | np.integer | slice) -> NDArray | list[NDArray]:
        """Tokens of one sequence, or of each sequence of a slice with step 1.

        Raises:
            ValueError: a slice whose step is not 1.
        """
        if not isinstance(idx, slice):
            return self.get(idx)
        start, stop, step = idx.indices(len(self))
        if step != 1:
            raise ValueError(f"slice step {step} is not supported; use a step of 1")
        return [self.get(i) for i in range(start, stop)]

    def get(self, idx: int | np.integer, offset: int = 0, length: int | None = None) -> NDArray:
        """Tokens ``offset`` to ``offset + length`` of one sequence; to its end without a length.

        Raises:
            ValueError: the range leaves the sequence.
        """
        available = int(self.sequence_lengths[idx])
        count = available - offset if length is None else length
        if offset < 0 or count < 0 or offset + count > available:
            raise ValueError(
                f"{self.path_prefix}: sequence {idx} has {available} tokens, asked for {count} "
                f"from {offset}; stay inside the sequence"
            )
        first = int(self.sequence_pointers[idx]) // self.dtype.itemsize + offset
        return self._at(first, count)

    def tokens(self, first: int, count: int) -> NDArray:
        """Tokens ``first`` to ``first + count`` of all sequences in their order."""
        if self.is_dense:
            return self._at(first, count)
        parts = []
        sequence = self.sequence_of(first)
        while count:
            offset = first - int(self.starts[sequence])
            part = self.get(sequence, offset)[:count]
            parts.append(part)
            first, count, sequence = first + len(part), count - len(part), sequence + 1
        return np.concatenate(parts)

    def token_blocks(self, block: int) -> Iterator[tuple[int, NDArray]]:
        """All tokens in the order of the sequences, as (number of the first token, tokens)."""
        total = int(self.sequence_lengths.sum(dtype=np.int64))
        for first in range(0, total, block):
            yield first, self.tokens(first, min(block, total - first))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Number of the first token of each sequence, over all sequences."""
        return np.cumsum(self.sequence_lengths, dtype=np.int64) - self.sequence_lengths

    def sequence_of(self, token: int) -> int:
        """Number of the sequence that holds a token."""
        return int(np.searchsorted(self.starts, token, side="right")) - 1

    @cached_property
    def state(self) -> dict[str, int]:
        """What tells this dataset from another one under the same path: its index decides."""
        idx_bytes = os.path.getsize(self._idx_path)
        return {
            "sequences": len(self),
            "tokens": int(self.sequence_lengths.sum(dtype=np.int64)),
            "bin_bytes": self._bin_bytes,
            "idx_bytes": idx_bytes,
            "idx_crc32": crc32_of_file(Path(self._idx_path), idx_bytes),
        }

    def close(self) -> None:
        """Release the file; the dataset cannot be read afterwards."""
        if self._file is not None:
            self._file.close()
        self._tokens = None

    @staticmethod
    def exists(path_prefix: str) -> bool:
        """Whether both files are there; of object storage that is found out when it is read."""
        if is_remote(path_prefix):
            return True
        return os.path.isfile(get_idx_path(path_prefix)) and os.path.isfile(
            get_bin_path(path_prefix)
        )

    def _at(self, first: int, count: int) -> NDArray:
        """Tokens by their place in the file.

        Raises:
            ValueError: the file is shorter now than when it was opened.
            OSError: object storage does not give them.
        """
        size, start = count * self.dtype.itemsize, first * self.dtype.itemsize
        if self._remote is not None:
            return np.frombuffer(self._remote.read(start, size), dtype=self.dtype)
        assert self._file is not None, "a local dataset has its file open"
        # A mapped file that is cut off ends the process with a bus error, so it is asked before.
        self._look_at_file(start + size)
        if self._tokens is not None:
            return self._tokens[first : first + count]
        data = os.pread(self._file.fileno(), size, start)
        if len(data) != size:
            raise self._cut_off(start + len(data))
        return np.frombuffer(data, dtype=self.dtype)

    def _look_at_file(self, end: int) -> None:
        assert self._file is not None, "a local dataset has its file open"
        now = os.fstat(self._file.fileno())
        if now.st_size < end or now.st_size < self._state.st_size:
            raise self._cut_off(now.st_size)
        if now.st_mtime_ns != self._state.st_mtime_ns and not self._is_changed:
            self._is_changed = True
            logger.warning(
                "%s was changed after it was opened: samples are read from other tokens than the "
                "run began with",
                get_bin_path(self.path_prefix),
            )

    def _cut_off(self, size: int) -> ValueError:
        return ValueError(
            f"{get_bin_path(self.path_prefix)} has {size} bytes and had {self._state.st_size} when "
            "it was opened; it was cut off or written again meanwhile: copy it again, then resume "
            "from the newest checkpoint"
        )

    def _require_files(self) -> None:
        paths = (get_idx_path(self.path_prefix), get_bin_path(self.path_prefix))
        missing = [path for path in paths if not os.path.isfile(path)]
        if not missing:
            return
        fix = "check the path or run tools/preprocess_data.py"
        if self.path_prefix.endswith((".bin", ".idx")):
            fix = f"give the prefix {self.path_prefix[:-4]!r}, without .bin or .idx"
        raise FileNotFoundError(
            f"{' and '.join(missing)} not found; a dataset is a pair of a .bin and an .idx file: "
            f"{fix}"
        )


class _Index:
    """The content of an .idx file, checked."""

    def __init__(self, idx_path: str) -> None:
        self.path = idx_path
        with open_regular(idx_path) as stream:
            head = stream.read(_HEADER.size)
            size = stream.seek(0, os.SEEK_END)
        magic_ok = head[: len(_MAGIC)] == _MAGIC
        if not magic_ok:
            self._reject(f"it starts with {head[: len(_MAGIC)]!r}, not {_MAGIC!r}")
        if len(head) < _HEADER.size:
            self._reject(f"it has {len(head)} bytes, fewer than its header of {_HEADER.size}")
        _, version, code, num_sequences, num_boundaries = _HEADER.unpack(head)
        if version != _VERSION:
            self._reject(f"its version is {version}, readable is {_VERSION}")
        try:
            self.dtype = DType.dtype_from_code(code)
        except ValueError as error:
            self._reject(str(error))
        needed = _HEADER.size + 12 * num_sequences + 8 * num_boundaries
        if size not in (needed, needed + num_sequences):
            state = "truncated" if size < needed else "longer than it says"
            self._reject(
                f"it is {state}: {size} bytes, but {num_sequences} sequences and "
                f"{num_boundaries} document boundaries take {needed}"
            )
        raw = np.asarray(np.memmap(idx_path, dtype=np.uint8, mode="r"))
        pointers_at = _HEADER.size + 4 * num_sequences
        boundaries_at = pointers_at + 8 * num_sequences
        self.sequence_lengths = np.frombuffer(raw, "<i4", num_sequences, _HEADER.size)
        self.sequence_pointers = np.frombuffer(raw, "<i8", num_sequences, pointers_at)
        self.document_indices = np.frombuffer(raw, "<i8", num_boundaries, boundaries_at)
        self._check_content()

    def check_against_bin(self, bin_path: str, size: int) -> None:
        """Every sequence lies inside the .bin file of so many bytes.

        Raises:
            ValueError: one does not.
        """
        end = 0
        for lengths, pointers in self._blocks():
            end = max(end, int((pointers + lengths.astype(np.int64) * self.dtype.itemsize).max()))
        if size < end:
            raise ValueError(
                f"{bin_path} has {size} bytes, but {self.path} places tokens up to byte {end}; the "
                ".bin file is truncated or belongs to another index: copy it again"
            )
        if size > end:
            logger.warning(
                "%s has %d bytes after its last token; does %s belong to it?",
                bin_path,
                size - end,
                self.path,
            )

    def _check_content(self) -> None:
        num_sequences, boundaries = len(self.sequence_lengths), self.document_indices
        first, last = (int(boundaries[i]) if len(boundaries) else None for i in (0, -1))
        if last != num_sequences:
            self._reject(f"its document index ends at {last}, not at {num_sequences} sequences")
        if first != 0:
            self._reject(f"its document index begins at {first}, not at 0")
        for start in range(0, len(boundaries), _CHECK_ROWS):
            if (np.diff(boundaries[start : start + _CHECK_ROWS + 1]) < 0).any():
                self._reject("its document index goes back")
        num_tokens = 0
        for lengths, pointers in self._blocks():
            if lengths.min() < 0 or pointers.min() < 0 or (pointers % self.dtype.itemsize).any():
                self._reject("it holds a negative length, or an offset that is no token boundary")
            num_tokens += int(lengths.sum(dtype=np.int64))
        if num_tokens == 0:
            self._reject(f"it describes zero tokens in {num_sequences} sequences")
        self._check_places()

    def _check_places(self) -> None:
        """No token belongs to two sequences."""
        end, is_ordered, self.is_dense = 0, True, True
        for lengths, pointers in self._blocks():
            ends = pointers + lengths.astype(np.int64) * self.dtype.itemsize
            self.is_dense &= bool(pointers[0] == end and (pointers[1:] == ends[:-1]).all())
            is_ordered &= bool(pointers[0] >= end and (pointers[1:] >= ends[:-1]).all())
            end = int(ends[-1])
        if is_ordered:
            return
        filled = np.flatnonzero(self.sequence_lengths)
        order = filled[np.argsort(self.sequence_pointers[filled], kind="stable")]
        starts = self.sequence_pointers[order]
        sizes = self.sequence_lengths[order].astype(np.int64) * self.dtype.itemsize
        over = np.flatnonzero(starts[1:] < starts[:-1] + sizes[:-1])
        if len(over):
            one, other = int(order[over[0]]), int(order[over[0] + 1])
            self._reject(f"its sequences {one} and {other} lie over each other in the .bin file")

    def _blocks(self) -> Iterator[tuple[NDArray, NDArray]]:
        for first in range(0, len(self.sequence_lengths), _CHECK_ROWS):
            rows = slice(first, first + _CHECK_ROWS)
            yield self.sequence_lengths[rows], self.sequence_pointers[rows]

    def _reject(self, found: str) -> None:
        raise ValueError(
            f"{self.path} is not a usable index file: {found}; write the dataset again with "
            "tools/preprocess_data.py or copy it again"
        )


class IndexedDatasetBuilder:
    """Write a dataset; the final names appear only when it is complete.

    Used as a context manager it removes its unfinished files when an error leaves the block.

    Args:
        bin_path: final path of the .bin file; its folder is made.
        dtype: type of a token, see ``DType.optimal_dtype``.

    Raises:
        OSError: no file can be made there.
        ValueError: the format has no code for this type.
    """

    def __init__(self, bin_path: str, dtype: DTypeLike = np.int32) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._code = DType.code_from_dtype(dtype)
        self._bin_path = str(bin_path)
        self._temporary = unfinished_name(Path(bin_path))
        try:
            self._file = open(self._temporary, "xb")  # noqa: SIM115  (finalize or discard closes)
        except OSError as error:
            name_it(error, self._bin_path, self._temporary)
            raise
        self._lengths = array("i")  # four and eight bytes per entry: corpora have 1e9 of them
        self._boundaries = array("q", [0])

    def __enter__(self) -> IndexedDatasetBuilder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            name_it(error, self._bin_path)
        self.discard()

    def add_item(self, tokens: ArrayLike) -> None:
        """Append one sequence to the current document."""
        ids = self._as_tokens(tokens)
        self._file.write(ids.tobytes())
        self._lengths.append(ids.size)

    def add_document(self, tokens: ArrayLike, lengths: Sequence[int]) -> None:
        """Append a document made of sequences of the given lengths.

        Raises:
            ValueError: the lengths do not add up to the tokens.
        """
        ids = self._as_tokens(tokens)
        if sum(lengths) != ids.size:
            raise ValueError(
                f"lengths add up to {sum(lengths)}, the document has {ids.size} tokens; give "
                "one length per sequence, covering all tokens"
            )
        self._file.write(ids.tobytes())
        self._lengths.extend(lengths)
        self.end_document()

    def add_documents(
        self, tokens: NDArray, lengths: NDArray[np.int32], sequences_per_document: NDArray
    ) -> None:
        """Append many documents at once.

        Args:
            tokens: all their tokens, of the dataset's type.
            lengths: tokens of each sequence.
            sequences_per_document: sequences of each document; 0 for an empty one.

        Raises:
            ValueError: the type differs, or the numbers do not add up.
        """
        num_tokens, num_sequences = lengths.sum(dtype=np.int64), sequences_per_document.sum()
        if tokens.dtype != self.dtype or num_tokens != len(tokens) or num_sequences != len(lengths):
            raise ValueError(
                f"{len(tokens)} tokens of type {tokens.dtype.name} with lengths of {num_tokens} in "
                f"{len(lengths)} sequences, of which documents claim {num_sequences}; give "
                f"{self.dtype.name} tokens and numbers that add up"
            )
        boundaries = np.cumsum(sequences_per_document, dtype=np.int64) + len(self._lengths)
        self._file.write(tokens.tobytes())
        self._lengths.frombytes(np.ascontiguousarray(lengths, np.int32).tobytes())
        self._boundaries.frombytes(boundaries.tobytes())

    @property
    def num_tokens(self) -> int:
        """Tokens added so far."""
        return sum(self._lengths)

    def end_document(self) -> None:
        """Close the current document."""
        self._boundaries.append(len(self._lengths))

    def add_index(self, path_prefix: str) -> int:
        """Append a whole dataset; return its number of sequences.

        Raises:
            FileNotFoundError: it does not exist.
            ValueError: it is malformed or its token type differs.
        """
        other = IndexedDataset(path_prefix)
        if other.dtype != self.dtype:
            raise ValueError(
                f"{path_prefix} stores {other.dtype.name}, this dataset {self.dtype.name}; "
                "datasets to merge need one token type: preprocess them with one tokenizer"
            )
        size = int(other.sequence_lengths.sum(dtype=np.int64)) * self.dtype.itemsize
        if not other.is_dense or os.path.getsize(get_bin_path(path_prefix)) != size:
            raise ValueError(
                f"the sequences of {path_prefix} do not lie one behind the other in its .bin file; "
                "only such datasets can be appended: preprocess it again"
            )
        boundaries = other.document_indices[1:] + len(self._lengths)
        self._boundaries.frombytes(boundaries.astype(np.int64).tobytes())
        self._lengths.frombytes(other.sequence_lengths.astype(np.int32).tobytes())
        count = len(other)
        other.close()
        with open(get_bin_path(path_prefix), "rb") as source:
            shutil.copyfileobj(source, self._file, _COPY_BYTES)
        return count

    def add_builder(self, other: IndexedDatasetBuilder) -> None:
        """Append what an unfinished builder of the same token type holds."""
        assert other.dtype == self.dtype, "parts of one dataset have one token type"
        boundaries = np.array(other._boundaries[1:], np.int64) + len(self._lengths)
        self._boundaries.frombytes(boundaries.tobytes())
        self._lengths.extend(other._lengths)
        other._file.flush()
        with open(other._temporary, "rb") as source:
            shutil.copyfileobj(source, self._file, _COPY_BYTES)

    def finalize(self, idx_path: str) -> None:
        """Write the index and give both files their final names.

        Raises:
            ValueError: no token was added.
        """
        lengths = np.array(self._lengths, np.int32)
        boundaries = np.array(self._boundaries, np.int64)
        sizes = lengths.astype(np.int64) * self.dtype.itemsize
        if sizes.sum() == 0:
            self.discard()
            raise ValueError(
                f"{self._bin_path}: no token was added; a dataset needs at least one: check the "
                "input"
            )
        with appears_whole(idx_path) as unfinished:
            with open(unfinished, "xb") as stream:
                numbers = (_MAGIC, _VERSION, self._code, len(lengths), len(boundaries))
                stream.write(_HEADER.pack(*numbers))
                stream.write(lengths.astype("<i4").tobytes())
                stream.write((np.cumsum(sizes) - sizes).astype("<i8").tobytes())
                stream.write(boundaries.astype("<i8").tobytes())
            self._file.close()
            # An old index must never meet new tokens, so it goes first and the new one comes last.
            with suppress(FileNotFoundError):
                os.remove(idx_path)
            os.replace(self._temporary, self._bin_path)

    def discard(self) -> None:
        """Remove the unfinished file; nothing happens after ``finalize``."""
        with suppress(OSError):  # on a full disk what waits cannot be written either
            self._file.close()
        with suppress(FileNotFoundError):
            os.remove(self._temporary)
        forget(self._temporary)

    def _as_tokens(self, tokens: ArrayLike) -> NDArray:
        ids = np.asarray(tokens)
        if ids.size and self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            if ids.min() < limits.min or ids.max() > limits.max:
                raise ValueError(
                    f"token ids {ids.min()} to {ids.max()} do not fit {self.dtype.name}; choose "
                    "the type with DType.optimal_dtype(vocabulary size)"
                )
        return ids.astype(self.dtype).reshape(-1)
