# SPDX-License-Identifier: Apache-2.0
"""Sums and gathers of a few numbers over ranks of one host; csrc/ranks.cpp."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.ops.cpu.library import native

_LINE = 64
_BLOCK = 2**16
"""Numbers that ranks tell each other at a time."""


class Ranks(ctypes.Structure):
    """Ranks of csrc/ranks.h."""

    _fields_ = (
        ("rank", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("shared", ctypes.c_void_p),
    )


def num_bytes(size: int) -> int:
    """Of the memory that so many ranks share."""
    return size * (_LINE + 2 * _BLOCK * 4)


def ranks_of(shared: NDArray[np.uint8], rank: int, size: int) -> Ranks:
    """Ranks that share memory of ``num_bytes``, zeros before the first of them used it.

    Args:
        shared: the memory, which the caller keeps.
        rank: this one's place.
        size: how many there are.
    """
    return Ranks(rank, size, _BLOCK, shared.ctypes.data)


def sum_over(ranks: Ranks, x: NDArray[np.float32]) -> None:
    """Replace a dense array by the sum over the ranks, which has the same bits on all of them."""
    native.sum_over_ranks(ctypes.addressof(ranks), x.ctypes.data, x.size)


def gathered(ranks: Ranks, own: NDArray[np.float32]) -> NDArray[np.float32]:
    """The dense arrays of all ranks, [size, ...]."""
    every = np.empty((ranks.size, *own.shape), np.float32)
    native.gather_over_ranks(ctypes.addressof(ranks), own.ctypes.data, own.size, every.ctypes.data)
    return every
