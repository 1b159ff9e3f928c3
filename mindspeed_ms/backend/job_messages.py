# SPDX-License-Identifier: Apache-2.0
"""The messages between a rank and the server of its job: JSON lines of known fields.

A message is accepted only if it has exactly the fields of its kind, each of the right type and
size. That holds for both directions, and for peers that have proved who they are as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

MAX_LINE = 1 << 16
"""Bytes of one message."""
MAX_TEXT = 4096
"""Characters of one field."""
_MAX_NUMBER = 1 << 31

Message = dict[str, Any]
_Rule = Callable[[object], bool]


class ProtocolError(RuntimeError):
    """A peer sent something that is no message, or not one it may send now."""


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_NUMBER


def _is_number_or_none(value: object) -> bool:
    return value is None or _is_number(value)


def _is_seconds(value: object) -> bool:
    is_number = type(value) in (int, float)
    return is_number and math.isfinite(value) and 0 <= value < _MAX_NUMBER  # type: ignore[operator, arg-type]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


Forms = Mapping[str, Mapping[str, _Rule]]

FROM_RANK: Forms = {
    "join": {
        "size": _is_number,
        "rank": _is_number_or_none,
        "local_rank": _is_number_or_none,
        "pid": _is_number,
        "name": _is_text,
    },
    "gone": {"rank": _is_number_or_none, "name": _is_text, "reason": _is_text},
    "pmi": {"rank": _is_number},
    "running": {},
    "limits": {"timeout": _is_seconds},
    "beat": {"call": _is_text, "iteration": _is_number, "blocked": _is_seconds},
    "abort": {"reason": _is_text, "blames_peer": _is_bool},
    "leave": {},
}
"""What a rank may say. ``gone``: this process, or one it knows of, ends and will never join."""

FROM_SERVER: Forms = {
    "wait": {},
    "start": {
        "rank": _is_number,
        "size": _is_number,
        "local_rank": _is_number,
        "local_size": _is_number,
        "address": _is_text,
        "beat_seconds": _is_seconds,
    },
    "refuse": {"reason": _is_text},
    "pmi": {},
    "beat": {},
    "note": {"text": _is_text},
    "stop": {"reason": _is_text, "rank": _is_number_or_none},
    "finalize": {},
    "detach": {},
}
"""What the server may say."""


def read(line: bytes, forms: Forms) -> Message:
    """Check one line and return the message in it.

    Raises:
        ProtocolError: it is not JSON, or no message of these forms.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ProtocolError(f"{_shown(line)} is no message") from None
    kind = message.get("op") if isinstance(message, dict) else None
    form = forms.get(kind) if isinstance(kind, str) else None
    if form is None or message.keys() != {"op", *form}:
        raise ProtocolError(f"{_shown(line)} is no message of a known kind")
    for name, is_right in form.items():
        if not is_right(message[name]):
            raise ProtocolError(f"{_shown(line)} has a wrong value of {name}")
    return message


def write(kind: str, **fields: object) -> bytes:
    """The line of a message; long texts are cut."""
    cut = {k: v[:MAX_TEXT] if isinstance(v, str) else v for k, v in fields.items()}
    return json.dumps({"op": kind, **cut}).encode() + b"\n"


def _shown(line: bytes) -> str:
    return repr(line[:80].decode(errors="replace"))
