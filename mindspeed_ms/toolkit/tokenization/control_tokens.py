# SPDX-License-Identifier: Apache-2.0
"""Control tokens that users spell out in a conversation, encoded as ordinary text.

They are marked before the template sees them; what is marked in the text it writes is the user's.

Source: ``transformers`` 5.24 ``sanitize_control_tokens`` (which tokens, which ids).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mindspeed_ms.data.tokenizers.chat_templates import literal_text

_START, _END = "\U000f0000", "\U000f0001"
"""Characters for private use, put around a token of the user's."""


def of_template(added: Iterable[Any], template: str) -> list[str]:
    """Added tokens that control a conversation: special ones, and those the template spells out."""
    literal = literal_text(template)
    return [
        token.content
        for token in added
        # A line end may be an added token; templates write it as text.
        if token.special or (token.content in literal and not token.content.isspace())
    ]


def _any_of(tokens: Iterable[str]) -> str:
    longest_first = sorted(tokens, key=len, reverse=True)
    return "|".join(map(re.escape, longest_first)) or "(?!)"


def marked(value: Any, tokens: Iterable[str]) -> Any:
    """Messages, tools or documents with their control tokens marked; names stay as they are."""
    pattern = re.compile(_any_of(tokens))

    def mark(inner: Any) -> Any:
        if isinstance(inner, str):
            # Marks that are there already would pass for ours.
            clean = inner.replace(_START, "").replace(_END, "")
            return pattern.sub(f"{_START}\\g<0>{_END}", clean)
        if isinstance(inner, Mapping):
            return {name: mark(part) for name, part in inner.items()}
        return [mark(part) for part in inner] if isinstance(inner, list | tuple) else inner

    return mark(value)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text in which the user's control tokens are marked.

    Raises:
        ValueError: a token that comes out of plain text too.
    """
    tokens = _any_of(tokenizer.added_tokens_encoder)
    first, *others = re.split(f"{_START}({tokens}){_END}|[{_START}{_END}]", text)
    ids = tokenizer.encode(first, add_special_tokens=False)
    for place, piece in enumerate(others):
        if piece:
            is_users = place % 2 == 0
            found = _within(tokenizer, piece, is_users)
            if is_users and tokenizer.convert_tokens_to_ids(piece) in found:
                raise ValueError(f"{piece!r} cannot be text: the tokenizer makes it of plain text")
            ids += found
    return ids


def _within(tokenizer: Any, piece: str, is_users: bool) -> list[int]:
    """Ids of a piece from the middle of a text.

    At the start of a text SentencePiece adds a space; a line end before the piece keeps it away.
    """

    def ids_of(text: str) -> list[int]:
        if is_users:
            return _without_added_tokens(tokenizer.backend_tokenizer, text)
        return tokenizer.encode(text, add_special_tokens=False)

    line_end = tokenizer.encode("\n", add_special_tokens=False)
    found = ids_of("\n" + piece)
    return found[len(line_end) :] if found[: len(line_end)] == line_end else ids_of(piece)


def _without_added_tokens(backend: Any, text: str) -> list[int]:
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text]
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]
