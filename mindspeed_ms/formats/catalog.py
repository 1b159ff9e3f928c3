# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds, whatever its format: tensors, and in which bytes of which file they lie.

Every format is read by making a catalog of it. Nothing is loaded by that: a tensor is read when it
is needed, and of it only the part that is needed.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.files.checksum import Checksum, Verified
from mindspeed_ms.files.regular_file import FETCHED_BYTES, fetch
from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.quantized import BlockScales
from mindspeed_ms.plan.region import Block, Box, Region, Span, intersect

CHUNK_BYTES = 1 << 20
"""Read at a time when the numbers wanted do not lie together, or must be converted: what fits into
the cache."""

MAX_OPEN_FILES = 64

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """Consecutive bytes of a file that hold a span of a tensor."""

    span: Span
    dtype: str
    path: Path
    offset: int
    """Bytes before the first number."""
    is_transposed: bool = False
    """The file holds the matrix transposed; the span is complete then."""
    checksum: Checksum | None = None
    """Of the bytes around the piece, if the file carries one."""
    held: np.ndarray | None = field(default=None, compare=False)
    """The numbers, where the file holds them in an order that a span cannot name."""
    scales: BlockScales | None = field(default=None, compare=False)
    """Factors of the numbers, where the file holds these in eight bits."""
    decode: Callable[[], np.ndarray] | None = field(default=None, compare=False)
    """Reads all numbers in fp32, where the file holds them in fewer than eight bits."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the piece."""
        if self.decode is not None:
            return 0  # its parts are checked where they are found
        return (self.span.stop - self.span.start) * dtypes.width(self.dtype)


@dataclass(slots=True)
class StoredTensor:
    """A tensor of a checkpoint: its pieces make up all of it."""

    shape: Shape
    dtype: str
    pieces: list[StoredPiece] = field(default_factory=list)
    digest: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * dtypes.width(self.dtype)


@dataclass(slots=True)
class Catalog:
    """Tensors by name, and what else is known about the run."""

    tensors: dict[str, StoredTensor]
    """Weights under their names; the optimizer's tensors with the prefix of their kind."""
    common: dict[str, Any] = field(default_factory=dict)
    """Iteration, consumed samples, scheduler, configuration: plain data."""
    source: str = ""
    """Format, and where the checkpoint lies."""
    notes: list[str] = field(default_factory=list)
    """What was left aside or assumed in reading it, a line each, for the user."""

    def tensor(self, name: str) -> StoredTensor:
        """One tensor.

        Raises:
            ValueError: the checkpoint has none of this name.
        """
        if name not in self.tensors:
            raise ValueError(f"{self.source} holds no tensor {name}; it cannot be read from there")
        return self.tensors[name]


class TensorReader:
    """Reads parts of tensors; keeps files open between reads.

    Args:
        verified: checksums that were compared already; all others are when their bytes are first
            read.
    """

    def __init__(self, verified: Verified | None = None) -> None:
        self._verified = verified or Verified()
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._scratch = np.empty(0, np.uint8)
        self.bytes_read = 0

    def close(self) -> None:
        """Close all files."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def read(self, tensor: StoredTensor, dtype: str | None = None) -> np.ndarray:
        """A whole tensor, in its own type or another."""
        flat = self.read_span(tensor, Span.all_of(Region.whole(tensor.shape)), dtype)
        return flat.reshape(tensor.shape)

    def read_span(
        self,
        tensor: StoredTensor,
        want: Span,
        dtype: str | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """A span of a tensor, flat.

        Args:
            tensor: the tensor.
            want: region of the tensor, and which elements of the region.
            dtype: type of the result, None for the stored one.
            out: contiguous memory for the result.

        Raises:
            ValueError: the pieces do not cover the span, or a file is shorter than it should be.
        """
        dtype = dtype or tensor.dtype
        if out is None:
            out = np.empty(want.stop - want.start, dtypes.NUMPY[dtype])
        blocks = list(want.blocks())
        bounds = want.region.bounds
        copied = 0
        for piece in tensor.pieces:
            if all(
                low < other_high and other_low < high
                for (low, high), (other_low, other_high) in zip(
                    bounds, piece.span.region.bounds, strict=True
                )
            ):
                if piece.checksum is not None:
                    self._verified.require(piece.checksum)
                copied += self._copy(piece, blocks, out, dtype)
        if copied != out.size:
            raise ValueError(
                f"of {out.size} numbers of a tensor of shape {tensor.shape} the checkpoint holds "
                f"{copied}; it is incomplete: load another one"
            )
        return out

    def _copy(
        self, piece: StoredPiece, targets: Sequence[Block], out: np.ndarray, dtype: str
    ) -> int:
        """Copy what a piece has of the targets; return the number of elements."""
        copied = 0
        whole = None
        for source in piece.span.blocks():
            for target in targets:
                shared = intersect(
                    (source.globally, source.local[1]), (target.globally, target.local[1])
                )
                if shared is None:
                    continue
                start, size = shared
                place = _memory_of(target, out)[_slices(_within(target, start), size)]
                box = (_within(source, start), size)
                if piece.is_transposed or piece.decode is not None:
                    whole = self._transposed(piece) if whole is None else whole
                    kind = piece.dtype if piece.decode is None else "F32"
                    dtypes.copy(place, dtypes.convert(whole[_slices(*box)], kind, dtype))
                else:
                    self._read_box(piece, source, box, place, dtype)
                copied += math.prod(size)
        return copied

    def _transposed(self, piece: StoredPiece) -> np.ndarray:
        if piece.decode is not None:
            return piece.decode()
        rows, columns = piece.span.region.shape
        stored = np.empty((columns, rows), dtypes.NUMPY[piece.dtype])
        self._fill(piece, stored, 0)
        return stored.T

    def _read_box(
        self, piece: StoredPiece, source: Block, box: Box, place: np.ndarray, dtype: str
    ) -> None:
        """Fill ``place`` with a box of a contiguous block of the file."""
        shape = source.memory[1]
        start, size = box
        if not shape:
            shape, start, size, place = (1,), (0,), (1,), place.reshape(1)
        # Dimensions of length 1 in front only shift the position.
        row = math.prod(shape[1:])
        lead = 0
        while len(shape) > 1 and size[0] == 1:
            lead += start[0] * row
            shape, start, size, place = shape[1:], start[1:], size[1:], place[0]
            row = math.prod(shape[1:])
        is_together = size[1:] == shape[1:]
        same = piece.dtype == dtype
        if is_together and same and place.flags.c_contiguous:
            self._fill(piece, place, source.flat + lead + start[0] * row)
            return
        step = max(1, CHUNK_BYTES // max(1, row * dtypes.width(piece.dtype)))
        for first in range(0, size[0], step):
            rows = min(step, size[0] - first)
            chunk = self._room(rows * row, piece.dtype).reshape(rows, *shape[1:])
            position, kind = source.flat + lead + (start[0] + first) * row, piece.dtype
            self._fill(piece, chunk, position)
            if piece.scales is not None:
                chunk, kind = piece.scales.decoded(chunk, position), "F32"
            part = chunk[(slice(None), *_slices(start[1:], size[1:]))]
            place[first : first + rows] = dtypes.convert(part, kind, dtype)

    def _room(self, count: int, dtype: str) -> np.ndarray:
        """Memory for some numbers, used again: fresh memory costs as much as reading."""
        size = count * dtypes.width(dtype)
        if len(self._scratch) < size:
            self._scratch = np.empty(size, np.uint8)
        return self._scratch[:size].view(dtypes.NUMPY[dtype])

    def _fill(self, piece: StoredPiece, array: np.ndarray, first: int) -> None:
        """Read consecutive numbers of a piece into a contiguous array."""
        if piece.held is not None:
            np.copyto(array.reshape(-1), piece.held.reshape(-1)[first : first + array.size])
            return
        handle = self._open(piece.path)
        buffer = array.reshape(-1).view(np.uint8).data
        position = piece.offset + first * dtypes.width(piece.dtype)
        done = 0
        while done < len(buffer):
            block = buffer[done : done + FETCHED_BYTES]
            fetch(handle, position + done, len(block))
            count = os.preadv(handle, [block], position + done)
            if count == 0:
                raise ValueError(
                    f"{piece.path} ends after {position + done} bytes, but a tensor reaches to "
                    f"{position + len(buffer)}; the file is damaged: load another checkpoint"
                )
            done += count
        self.bytes_read += done

    def _open(self, path: Path) -> int:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        if len(self._files) >= MAX_OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[path] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return self._files[path]


def _memory_of(block: Block, flat: np.ndarray) -> np.ndarray:
    size = block.memory[1]
    return flat[block.flat : block.flat + math.prod(size)].reshape(size)


def _within(block: Block, start: Shape) -> Shape:
    """Indices in a block's memory box of a global position."""
    return tuple(
        local + position - begin
        for local, position, begin in zip(block.local[0], start, block.globally, strict=True)
    )


def _slices(start: Shape, size: Shape) -> tuple[slice, ...]:
    return tuple(slice(low, low + extent) for low, extent in zip(start, size, strict=True))
