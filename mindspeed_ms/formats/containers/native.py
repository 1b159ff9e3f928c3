"""The compiled part of this package: sums for digests, and CRC-32.

Both have a definition in Python that is used where nothing was compiled, several times slower.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
"""Read at a time: what is still in the cache when it is summed up."""

_SHORT = 4096
"""Below so many bytes zlib is done before a foreign function is called."""


@functools.cache
def function(name: str) -> Any | None:
    """A compiled function; None where it was not built, which is said once."""
    for path in sorted(Path(__file__).parent.glob("_kernels_digest*.so")):
        try:
            return getattr(ctypes.CDLL(str(path)), name)
        except (OSError, AttributeError) as error:
            logger.warning(
                "%s lacks %s (%s); checkpoints take several times as much computing: build again",
                path,
                name,
                error,
            )
    return None


@functools.lru_cache(maxsize=1)
def _crc32_function() -> Callable[[int, int, int], int] | None:
    compiled = function("crc32_update")
    if compiled is not None:
        compiled.argtypes = [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int64]
        compiled.restype = ctypes.c_uint32
    return compiled


def crc32(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """``zlib.crc32``: the checksum of what gave ``value``, followed by ``data``."""
    compiled = _crc32_function() if len(data) > _SHORT else None
    if compiled is None:
        return zlib.crc32(data, value)
    array = np.frombuffer(data, np.uint8)
    return compiled(value, array.ctypes.data, array.size)


def crc32_of_file(path: Path, num_bytes: int) -> int:
    """The checksum of the first bytes of a file, or of all of it if it is shorter."""
    room = memoryview(bytearray(_READ_BYTES))
    value = 0
    with path.open("rb", buffering=0) as file:
        while num_bytes and (count := file.readinto(room[: min(num_bytes, _READ_BYTES)])):
            value = crc32(room[:count], value)
            num_bytes -= count
    return value
