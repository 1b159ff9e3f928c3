# SPDX-License-Identifier: Apache-2.0
"""Texts while they are generated, by the classes of ``transformers``."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from queue import Queue
from typing import Any, Protocol

import numpy as np

from mindspeed_ms.toolkit.given import shown

WHOLE_WORDS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
"""Blocks of Chinese characters, each of which is shown as soon as it is there."""


class BaseStreamer(Protocol):
    """What ``generate(streamer=...)`` calls."""

    def put(self, value: Any) -> None:
        """Take the prompt [b, s] first, then the new token of each row [b]."""

    def end(self) -> None:
        """Nothing more comes."""


class TextStreamer:
    """Writes a text to standard output as it grows, up to the last whole word. One prompt.

    Args:
        tokenizer: what decodes.
        skip_prompt: leave the prompt out.
        decode_kwargs: for the tokenizer's ``decode``.

    Source: ``transformers`` ``TextStreamer`` (names, when a text is shown).
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer, self.skip_prompt, self.decode_kwargs = tokenizer, skip_prompt, decode_kwargs
        self._tokens: list[int] = []
        self._shown = 0
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """Take tokens, and write what has become sure.

        Raises:
            ValueError: several prompts, or no ids.
        """
        try:
            tokens = np.atleast_2d(np.asarray(value))
        except ValueError:  # rows of several lengths
            tokens = np.empty((0, 0), object)
        if tokens.dtype.kind not in "iu" or tokens.ndim != 2:
            raise ValueError(f"{shown(value)} is no row of ids; a streamer shows tokens of a text")
        if tokens.shape[0] > 1:
            raise ValueError(f"a text streamer shows one text, but gets {tokens.shape[0]} prompts")
        is_prompt, self._is_prompt = self._is_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self._tokens.extend(tokens[0].tolist())
        text = self._decoded()
        end = len(text) if _is_sure(text[self._shown :]) else text.rfind(" ") + 1
        new, self._shown = text[self._shown : end], max(end, self._shown)
        if text.endswith("\n"):
            # The last token stays, so that what follows keeps its leading space.
            self._tokens = self._tokens[-1:]
            self._shown = len(self._decoded())
        self.on_finalized_text(new)

    def end(self) -> None:
        """Write the rest, and a line's end."""
        rest = self._decoded()[self._shown :] if self._tokens else ""
        self._tokens, self._shown, self._is_prompt = [], 0, True
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write a text; subclasses do with it what they want."""
        sys.stdout.write(f"{text}\n" if stream_end is True else str(text))
        sys.stdout.flush()

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(self._tokens, **self.decode_kwargs))


def _is_sure(text: str) -> bool:
    """Whether no later token changes this end of a text."""
    if not text or text.endswith("\n"):
        return True
    last = ord(text[-1])
    if any(first <= last <= end for first, end in WHOLE_WORDS):
        return True
    return all(char.isspace() or unicodedata.category(char)[0] in "LMN" for char in text)


class TextIteratorStreamer(TextStreamer):
    """Gives the pieces of a text to whoever iterates, in another thread than ``generate``.

    Args:
        tokenizer: what decodes.
        skip_prompt: leave the prompt out.
        timeout: seconds to wait for a piece; None: for ever.
        decode_kwargs: for the tokenizer's ``decode``.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self._pieces: Queue[str | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Keep a piece for the reader."""
        self._pieces.put(text)
        if stream_end:
            self._pieces.put(None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self._pieces.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece
