# SPDX-License-Identifier: Apache-2.0
"""Texts of the high-level room that several of its modules say alike."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from mindspeed_ms.config.section import suggestion

_SAID: set[str] = set()


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Text for a name that nobody registered: the near one, else all there are.

    >>> unknown_name("model", "gtp2", ["gpt2", "llama"])
    "model 'gtp2' is unknown; did you mean 'gpt2'?"
    """
    known = sorted(known)
    listed = f"; there are: {', '.join(known)}" if known else f"; no {kind} is registered"
    return f"{kind} {name!r} is unknown{suggestion(name, known) or listed}"


def unknown_argument(function: str, name: str, known: Iterable[str]) -> str:
    """Text for a keyword that a call does not take."""
    known = sorted(known)
    near = suggestion(name, known) or f"; it takes: {', '.join(known)}"
    return f"{function} takes no argument {name!r}{near}"


def say_once(logger: logging.Logger, text: str) -> None:
    """Log a line the first time it comes up in this process."""
    if text not in _SAID:
        _SAID.add(text)
        logger.warning("%s", text)
