# SPDX-License-Identifier: Apache-2.0
"""CRC-32 as in zlib and ZIP files, by the vectorised library where it is installed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

from mindspeed_ms.files.regular_file import FETCHED_BYTES, fetch, open_regular

try:
    from isal.isal_zlib import crc32 as _vectorised
except ImportError:  # the standard library's is several times slower, and gives the same
    _vectorised = zlib.crc32

crc32: Callable[..., int] = _vectorised
"""(bytes, value = 0): the checksum of what gave ``value``, followed by the bytes."""

_READ_BYTES = 1 << 20
"""Read at a time: what is still in the cache when it is summed up."""


def crc32_of_file(path: Path, num_bytes: int, offset: int = 0) -> int:
    """The checksum of some bytes of a file, or of fewer if it ends before."""
    room = memoryview(bytearray(min(_READ_BYTES, max(1, num_bytes))))
    value = 0
    with open_regular(path) as file:
        file.seek(offset)
        done = 0
        while done < num_bytes:
            if done % FETCHED_BYTES == 0:
                fetch(file.fileno(), offset + done, min(FETCHED_BYTES, num_bytes - done))
            count = file.readinto(room[: min(num_bytes - done, len(room))])
            if not count:
                break
            value = crc32(room[:count], value)
            done += count
    return value
