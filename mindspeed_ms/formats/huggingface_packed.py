# SPDX-License-Identifier: Apache-2.0
"""Quantized weights of a Hugging Face folder: which tensors they are, and how they are read."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.containers.safetensors_file import Place as FilePlace
from mindspeed_ms.formats.quantized import (
    BLOCKS,
    FP8,
    SCALE_SUFFIX,
    SCALES,
    BlockScales,
    Floats,
    block_of,
    mxfp4,
)
from mindspeed_ms.models.families.place import Place
from mindspeed_ms.plan.region import Span

Stored = Mapping[str, tuple[Path, FilePlace]]


@dataclass(frozen=True, slots=True)
class Packed:
    """The quantized tensors of a folder; reading makes plain numbers of them.

    Attributes:
        stored: key of a tensor -> its file, and where it lies there.
        block: rows and columns of a block of fp8.
        dtype: type that the numbers have here.
        narrow: keys of matrices in fp8.
        halved: names of matrices in mxfp4, which are stored in two parts.
    """

    stored: Stored
    block: tuple[int, int] | None
    dtype: str
    narrow: frozenset[str]
    halved: frozenset[str]

    @classmethod
    def of(cls, theirs: Mapping[str, Any], stored: Stored) -> Packed:
        """Those of a folder.

        Args:
            theirs: its ``config.json``.
            stored: its tensors.

        Raises:
            ValueError: weights that are quantized in another way, or lack their factors.
        """
        block = block_of(theirs.get("quantization_config"))
        narrow = frozenset(key for key, (_, place) in stored.items() if place.dtype == FP8)
        halved = frozenset(
            key.removesuffix(BLOCKS)
            for key in stored
            if key.endswith(BLOCKS) and key.removesuffix(BLOCKS) + SCALES in stored
        )
        for key in sorted(narrow):
            if block is None or key + SCALE_SUFFIX not in stored:
                raise ValueError(
                    f"{key} is stored in fp8 without the factors of its blocks (a tensor "
                    f"{key}{SCALE_SUFFIX}, and weight_block_size in quantization_config); the "
                    "folder is incomplete: copy it again"
                )
        names = [str(theirs.get(key)) for key in ("dtype", "torch_dtype")]
        words = {word: kind for kind, word in dtypes.WORDS.items()}
        dtype = next((words[name] for name in names if name in words), "BF16")
        return cls(stored, block, dtype, narrow, halved)

    @property
    def notes(self) -> list[str]:
        """What is done, in words."""
        count = len(self.narrow) + len(self.halved)
        kind = "fp8" if self.narrow else "mxfp4"
        word = dtypes.WORDS[self.dtype]
        return [f"{count} matrices in {kind} become {word}"] if count else []

    def names_of(self, keys: Collection[str]) -> set[str]:
        """Names of the matrices that keys of a folder belong to."""
        parts = {key + SCALE_SUFFIX for key in self.narrow}
        parts |= {name + end for name in self.halved for end in (BLOCKS, SCALES)}
        return (set(keys) - parts) | self.halved

    def holds(self, key: str) -> bool:
        """Whether a tensor is quantized."""
        return key in self.narrow or key in self.halved

    def add(self, catalog: Catalog, place: Place) -> None:
        """Add a quantized tensor to a catalog.

        Raises:
            ValueError: it has another shape than the model says.
        """
        piece = self._fp8(place) if place.theirs in self.narrow else self._mxfp4(place)
        shape = tuple(high for _, high in place.region.bounds)
        tensor = catalog.tensors.setdefault(place.name, StoredTensor(shape, self.dtype))
        tensor.shape = tuple(max(a, b) for a, b in zip(tensor.shape, shape, strict=True))
        tensor.pieces.append(piece)

    def _fp8(self, place: Place) -> StoredPiece:
        assert self.block is not None, "checked for all of them"
        path, found = self.stored[place.theirs]
        scales_path, scales = self.stored[place.theirs + SCALE_SUFFIX]
        _check_shape(path, place.theirs, found.shape, place.stored_shape)
        blocks = tuple(-(-size // one) for size, one in zip(found.shape, self.block, strict=True))
        _check_shape(scales_path, place.theirs + SCALE_SUFFIX, scales.shape, blocks)
        load = functools.cache(functools.partial(_floats, scales_path, scales))
        factors = BlockScales(found.shape[-1], self.block, load)
        span = Span.all_of(place.region)
        return StoredPiece(span, found.dtype, path, found.offset, scales=factors)

    def _mxfp4(self, place: Place) -> StoredPiece:
        """One of the matrices that a tensor stacks; it lies [outputs, inputs], other than plain."""
        path, blocks = self.stored[place.theirs + BLOCKS]
        scales_path, scales = self.stored[place.theirs + SCALES]
        index, number = place.part or (0, 1)
        outputs, inputs = place.region.shape
        wanted = (number, outputs, inputs // 32)
        _check_shape(path, place.theirs + BLOCKS, blocks.shape, (*wanted, 16))
        _check_shape(scales_path, place.theirs + SCALES, scales.shape, wanted)

        def decode() -> Floats:
            numbers = _bytes(path, blocks, index, number)
            return mxfp4(numbers, _bytes(scales_path, scales, index, number))

        return StoredPiece(Span.all_of(place.region), "F32", path, 0, decode=decode)


def _check_shape(path: Path, key: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        raise ValueError(
            f"{path}: {key} has shape {list(found)}, its config.json says {list(wanted)}"
        )


def _floats(path: Path, place: FilePlace) -> Floats:
    """A small tensor in fp32."""
    count = place.num_bytes // dtypes.width(place.dtype)
    flat = np.fromfile(path, dtypes.NUMPY[place.dtype], count, offset=place.offset)
    return dtypes.convert(flat, place.dtype, "F32").reshape(place.shape)


def _bytes(path: Path, place: FilePlace, index: int, number: int) -> np.ndarray:
    """One of the tensors that a file stacks, as bytes."""
    size = place.num_bytes // number
    flat = np.fromfile(path, np.uint8, size, offset=place.offset + index * size)
    return flat.reshape(place.shape[1:])
