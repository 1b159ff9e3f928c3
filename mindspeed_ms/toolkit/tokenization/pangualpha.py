# SPDX-License-Identifier: Apache-2.0
"""PanguAlpha's tokenizer: words found by ``jieba``, then SentencePiece.

Source: MindFormers r1.0 and the model's own release (words, signs for spaces and line ends).
"""

from __future__ import annotations

import logging
import re
from typing import Any

from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.toolkit import registry
from mindspeed_ms.toolkit.tokenization.base import Ids, PreTrainedTokenizerFast

_WRITTEN = str.maketrans({" ": "\u2582", "\n": "\u2583"})
"""Spaces and line ends of a text; the vocabulary's spaces stand between words."""


class PanguAlphaTokenizer(PreTrainedTokenizerFast):
    """Chinese and English words, then the pieces of ``vocab.model``.

    Raises:
        RuntimeError: ``jieba`` is not installed; it is in the extra ``pangualpha``.
    """

    pipeline_name = "PanguAlphaTokenizer"

    def _words(self, text: str) -> str:
        """A text with spaces between its words; special tokens stay as they are."""
        jieba = optional_libraries.load("jieba", "PanguAlphaTokenizer", extra="pangualpha")
        jieba.setLogLevel(logging.WARNING)
        special = "|".join(re.escape(token) for token in self.added_tokens_encoder)
        parts = re.split(f"({special})", text)
        for place in range(0, len(parts), 2):
            words = jieba.cut(parts[place], cut_all=False)
            parts[place] = " ".join(word.translate(_WRITTEN) for word in words)
        return "".join(parts)

    def _encodings(self, rows: list[Any], add_special_tokens: bool, is_split: bool) -> list[Any]:
        if is_split:
            raise ValueError(
                "PanguAlphaTokenizer finds the words of a text itself; give texts, not words"
            )
        found = [
            self._words(row) if isinstance(row, str) else tuple(map(self._words, row))
            for row in rows
        ]
        return super()._encodings(found, add_special_tokens, is_split)

    def decode(
        self,
        token_ids: Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Text of ids; a list of texts for a batch."""
        text = super().decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces)
        if isinstance(text, list):
            return text
        return text.replace(" ", "").replace("\u2582", " ").replace("\u2583", "\n")


registry.TOKENIZERS.add(PanguAlphaTokenizer.__name__, PanguAlphaTokenizer)
