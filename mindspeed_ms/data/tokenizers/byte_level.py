# SPDX-License-Identifier: Apache-2.0
"""Bytes as printable characters: the alphabet of GPT-2's vocabulary and of those made like it.

Source: the alphabet is the one of GPT-2's ``encoder.py``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from mindspeed_ms.files import regular_file

MAX_BYTES = 1 << 30
"""Of a file of a tokenizer."""


@functools.cache
def symbols_of_bytes() -> dict[int, str]:
    """The printable character of each byte: itself where it has one, else one from 256 on."""
    itself = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {byte: chr(byte) for byte in itself}
    others = (byte for byte in range(256) if byte not in symbols)
    return symbols | {byte: chr(256 + place) for place, byte in enumerate(others)}


def written(token: bytes) -> str:
    """A token of bytes in that alphabet."""
    symbols = symbols_of_bytes()
    return "".join(symbols[byte] for byte in token)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a tokenizer.

    Raises:
        OSError: there is no file, or it cannot be read.
        ValueError: it is no regular file, not UTF-8, not JSON, or no object.
    """
    return regular_file.read_json(path, MAX_BYTES)
