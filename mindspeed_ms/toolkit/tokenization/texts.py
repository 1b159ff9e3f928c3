# SPDX-License-Identifier: Apache-2.0
"""Texts that a tokenizer is called with, looked at before the library sees them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mindspeed_ms.toolkit.given import shown, switch

Text = str | Sequence[Any]
"""A text, a list of texts, or (``is_split_into_words``) words and lists of words."""


def batch_of(text: Text, pair: Text | None, is_split: bool) -> tuple[list[Any], bool]:
    """What the library encodes, and whether it is a batch.

    Raises:
        TypeError: ``is_split_into_words`` is neither True nor False.
        ValueError: these are no texts, or first and second texts of other numbers.
    """
    for name, value in (("text", text), ("text_pair", pair)):
        _check_text(name, value)
    if switch("is_split_into_words", is_split):
        is_batch = (
            isinstance(text, list | tuple) and bool(text) and isinstance(text[0], list | tuple)
        )
    else:
        is_batch = isinstance(text, list | tuple)
    if not is_batch:
        return [(text, pair) if pair else text], False
    if pair is None:
        return list(text), True
    if isinstance(pair, str) or len(pair) != len(text):
        side = "a single text" if isinstance(pair, str) else f"{len(pair)} texts"
        raise ValueError(f"text_pair is {side}; a batch of {len(text)} needs as many second texts")
    return list(zip(text, pair, strict=True)), True


def _check_text(name: str, value: Any) -> None:
    first = value
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if value is not None and not isinstance(first, str | list | tuple):
        raise ValueError(
            f"{name} holds {type(first).__name__} {shown(first):.40}; give a str, a list of "
            "str, or lists of words with is_split_into_words=True"
        )


def half_character(rows: Any) -> str:
    """What is wrong with texts that are no Unicode; empty when they are."""
    if not isinstance(rows, str):
        return next(filter(None, map(half_character, rows)), "")
    found = re.search("[\ud800-\udfff]", rows)
    if found is None:
        return ""
    return f"a text is no Unicode: {found[0]!r} at {found.start()} is half a character; replace it"
