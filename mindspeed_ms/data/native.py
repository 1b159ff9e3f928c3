# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the compiled index builder; without it the NumPy versions are used."""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.files.native_library import open_library

logger = logging.getLogger(__name__)

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64


class NativeIndices:
    """The compiled functions.

    Args:
        path: the shared object.

    Raises:
        OSError: it cannot be loaded on this machine, or was built from other sources.
    """

    def __init__(self, path: Path) -> None:
        library = open_library(path)
        self._blend = library.blending_indices
        self._blend.argtypes = [_POINTER] * 4 + [_LONG] * 2
        self._blend.restype = None
        self._permute = library.random_permutation
        self._permute.argtypes = [_POINTER, _LONG, ctypes.c_uint32]
        self._permute.restype = None
        self._count = library.count_tokens
        self._count.argtypes = [_POINTER, _POINTER, _LONG]
        self._count.restype = _LONG
        self._rows = library.sample_rows
        self._rows.argtypes = [_POINTER, ctypes.c_int32, _POINTER, _POINTER, *[_LONG] * 4]
        self._rows.restype = None

    def blend(
        self, shares: NDArray[np.float64], limits: NDArray[np.int64] | None, size: int
    ) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """Corpus, and number within it, of each sample; see ``blending.py``."""
        corpora, places = np.empty(size, dtype=np.int16), np.empty(size, dtype=np.int64)
        self._blend(
            corpora.ctypes.data,
            places.ctypes.data,
            shares.ctypes.data,
            None if limits is None else limits.ctypes.data,
            len(shares),
            size,
        )
        return corpora, places

    def count_tokens(self, lengths: NDArray[np.int32], order: NDArray[np.int32]) -> int:
        """Tokens of the sequences in ``order``."""
        return self._count(lengths.ctypes.data, order.ctypes.data, len(order))

    def sample_rows(
        self,
        rows: NDArray,
        lengths: NDArray[np.int32],
        order: NDArray[np.int32],
        sequence_length: int,
        extra_token: int,
    ) -> None:
        """Fill the rows of the sample index behind row 0; see ``gpt_indices.py``."""
        assert rows.flags.c_contiguous, "rows are written one behind the other"
        self._rows(
            rows.ctypes.data,
            int(rows.dtype.itemsize == 8),
            lengths.ctypes.data,
            order.ctypes.data,
            len(order),
            len(rows),
            sequence_length,
            extra_token,
        )

    def permutation(self, size: int, seed: int) -> NDArray[np.int64]:
        """The order ``torch.randperm`` gives on CPU."""
        order = np.empty(size, dtype=np.int64)
        self._permute(order.ctypes.data, size, seed % 2**32)
        return order


@functools.lru_cache(maxsize=1)
def native_indices() -> NativeIndices | None:
    """The compiled functions; None where they were not built."""
    for path in sorted(Path(__file__).parent.glob("_kernels_indices*.so")):
        try:
            return NativeIndices(path)
        except (OSError, AttributeError) as error:
            logger.warning(
                "%s does not load (%s); blends are built by NumPy, several times slower",
                path,
                error,
            )
    return None
