# SPDX-License-Identifier: Apache-2.0
"""The text of a sequence as its tokens come: what is sure of it, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

CONTEXT_TOKENS = 8
"""Of the prompt, so that a first token gets the space it has behind them."""
_INCOMPLETE = "\ufffd"
"""What a decoder writes for a character whose bytes are not all there."""


class Decoder(Protocol):
    """What turns ids into text."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of ids."""


class GrowingText:
    """New text of one sequence.

    Held back is what later tokens can change: a character whose bytes are incomplete, and an end
    that may be the beginning of a stop string.

    Args:
        tokenizer: what decodes.
        prompt: ids before the text.
        stops: strings that end the text and are no part of it; looked for in new text alone.
    """

    def __init__(self, tokenizer: Decoder, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids = list(prompt[-CONTEXT_TOKENS:])
        self._read = len(self._ids)
        self._held = ""
        self.num_chars = 0
        """Of new text that is decoded, held back or not."""
        self.is_stopped = False
        """Whether a stop string was complete."""

    def push(self, token: int) -> str:
        """Take a token; return the text that has become sure."""
        self._ids.append(token)
        before, whole = self._decoded()
        if len(whole) <= len(before) or whole.endswith(_INCOMPLETE):
            return ""
        del self._ids[: self._read]
        self._read = len(self._ids)
        return self._release(whole[len(before) :])

    def end(self) -> str:
        """The rest, when no more tokens come."""
        if self.is_stopped:
            return ""
        before, whole = self._decoded()
        self._ids, self._read = [], 0
        rest = self._release(whole[len(before) :])
        held, self._held = self._held, ""
        return rest + held

    def _decoded(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        before = decode(self._ids[: self._read], skip_special_tokens=True)
        return before, decode(self._ids, skip_special_tokens=True)

    def _release(self, new: str) -> str:
        """Text of ``new`` and what was held that cannot belong to a stop string."""
        self.num_chars += len(new)
        text = self._held + new
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.is_stopped, self._held = True, ""
            return text[: min(places)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop string begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
