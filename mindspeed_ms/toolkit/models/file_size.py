# SPDX-License-Identifier: Apache-2.0
"""Sizes of files as users write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_MOST = 1 << 63
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?|)B?\s*", re.IGNORECASE)


def file_size(value: int | str) -> int:
    """Bytes of a number or of a text such as ``5GB``, ``500MB``, ``1GiB``.

    Raises:
        ValueError: neither, or less than one byte.

    >>> file_size("5GB"), file_size("1MiB"), file_size(17)
    (5000000000, 1048576, 17)
    """
    match = _SIZE.fullmatch(str(value))
    size = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    if not 1 <= size < _MOST:
        raise ValueError(f"{value!r:.60} is not the size of a file; write 5GB, 500MB or bytes")
    return int(size)
