# SPDX-License-Identifier: Apache-2.0
"""JSON with a checksum of itself at its end, as the last entry ``seal``."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from mindspeed_ms.files.regular_file import json_object, read_text

_SEAL = ',"seal":"'


def dumps(content: dict[str, Any]) -> str:
    """The text of an object that is not empty, sealed."""
    body = json.dumps(content, separators=(",", ":"))
    return f'{body[:-1]}{_SEAL}{_seal_of(body)}"}}'


def _seal_of(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def read(path: Path, limit: int, is_required: bool = True) -> dict[str, Any]:
    """What a file holds, the seal included.

    Args:
        path: the file.
        limit: bytes it may have.
        is_required: whether a text without a seal is damaged.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged.
    """
    text = read_text(path, limit)
    body, mark, tail = text.rpartition(_SEAL)
    if (mark or is_required) and tail != f'{_seal_of(body + "}")}"}}':
        raise ValueError(f"{path} is damaged; choose another checkpoint with --ckpt-step")
    return json_object(text, str(path))
