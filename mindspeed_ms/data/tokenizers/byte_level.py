"""Bytes as printable characters: the alphabet of GPT-2's vocabulary and of those made like it.

Source: the alphabet is the one of GPT-2's ``encoder.py``.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any


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
    """A JSON object from a file.

    Raises:
        ValueError: it is not UTF-8, not JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}; an object is needed")
    return content
