# SPDX-License-Identifier: Apache-2.0
"""Conversations to token ids, with a target that leaves out what the assistant did not say.

Source: Megatron-LM core 0.16 ``data/tokenizers/sft_tokenizer.py`` (prompt formats, masking).
Deliberate difference: the two formats are written by Python functions, so that no template
library is needed; ``chatml`` is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.labelled import IGNORE_INDEX
from mindspeed_ms.data.tokenizers.bpe_tokenizers import HuggingFaceTokenizer

DEFAULT_PROMPT_FORMAT = "nemotron-h-aligned"

Message = Mapping[str, str]


class _PromptFormat(NamedTuple):
    """How a conversation is written."""

    write: Callable[[str, str], tuple[str, str]]
    """(role, content) -> (what is given, what an assistant learns)."""

    pad_token: str | None
    """Token that fills a pack. None: the tokenizer's own."""


def _nemotron_h_aligned(role: str, content: str) -> tuple[str, str]:
    text = f"{content.strip()}\n"
    if role == "system":
        return f"<SPECIAL_10>System\n{text}", ""
    if role == "user":
        return f"<SPECIAL_11>User\n{text}<SPECIAL_11>Assistant\n", ""
    return "", text


def _nemotron_nano_v2(role: str, content: str) -> tuple[str, str]:
    if role == "assistant":
        return "<SPECIAL_11>Assistant\n", f"{content.strip()}\n<SPECIAL_12>\n"
    text = content.replace("/think", "").replace("/no_think", "").strip()
    mark = "<SPECIAL_10>System" if role == "system" else "<SPECIAL_11>User"
    return f"{mark}\n{text}\n", ""


def _chatml(role: str, content: str) -> tuple[str, str]:
    start, text = f"<|im_start|>{role}\n", f"{content.strip()}<|im_end|>\n"
    return (start, text) if role == "assistant" else (start + text, "")


PROMPT_FORMATS: Mapping[str, _PromptFormat] = {
    "nemotron-h-aligned": _PromptFormat(_nemotron_h_aligned, "<SPECIAL_233>"),
    "nemotron-nano-v2": _PromptFormat(_nemotron_nano_v2, "<unk>"),
    "chatml": _PromptFormat(_chatml, None),
}
"""Values of ``--sft-tokenizer-prompt-format``."""


class SFTTokenizer:
    """A Hugging Face tokenizer that also writes conversations.

    Args:
        path: folder of the tokenizer, or its ``tokenizer.json``.
        prompt_format: one of ``PROMPT_FORMATS``.

    Raises:
        ValueError: an unknown format, a tokenizer without the format's pad token, or unusable
            files.
        RuntimeError: neither ``tokenizers`` nor ``transformers`` is installed.
    """

    def __init__(self, path: str, prompt_format: str = DEFAULT_PROMPT_FORMAT) -> None:
        if prompt_format not in PROMPT_FORMATS:
            raise ValueError(
                f"prompt format {prompt_format!r} is unknown; set --sft-tokenizer-prompt-format to "
                f"one of {', '.join(PROMPT_FORMATS)}"
            )
        self.unique_identifiers: dict[str, object] = {
            "class": "SFTTokenizer",
            "tokenizer_path": [path],
            "prompt_format": prompt_format,
        }
        self._format = PROMPT_FORMATS[prompt_format]
        self._text = HuggingFaceTokenizer(path)
        self.eod: int = self._text.eod
        self.eos: int | None = self._text.eos
        name = self._format.pad_token
        pad = self._text.pad if name is None else self._text.token_to_id(name)
        if pad is None:
            raise ValueError(
                f"tokenizer {path} has no pad token {name or ''}, with which prompt format "
                f"{prompt_format} fills packs; choose another format or add the token"
            )
        self.pad: int = pad

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, added tokens included."""
        return self._text.vocab_size

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text that is no conversation."""
        return self._text.tokenize(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self._text.detokenize(ids)

    def token_to_id(self, token: str) -> int | None:
        """Id of one entry of the vocabulary; None when there is no such entry."""
        return self._text.token_to_id(token)

    def tokenize_conversation(
        self, conversation: Sequence[Message]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of a conversation and their targets, ``IGNORE_INDEX`` where nothing is learned.

        Raises:
            ValueError: an unknown role, an empty answer, or an answer to nobody.
        """
        tokens: list[int] = []
        targets: list[int] = []
        previous = ""
        for message in conversation:
            role, content = message["role"].lower(), message["content"]
            if role not in ("system", "user", "assistant"):
                raise ValueError(
                    f"role {message['role']!r} is unknown; use system, user or assistant"
                )
            if role == "assistant" and (not content or previous != "user"):
                raise ValueError(
                    "an answer of the assistant is empty or does not follow a message of the user; "
                    f"it begins {content[:40]!r}"
                )
            given, learned = self._format.write(role, content)
            ids = self._text.tokenize(given + learned, add_special_tokens=False)
            num_given = len(ids)
            if learned:
                num_given = (
                    len(self._text.tokenize(given, add_special_tokens=False)) if given else 0
                )
            tokens += ids
            targets += [IGNORE_INDEX] * num_given + ids[num_given:]
            previous = role
        return np.array(tokens, dtype=np.int64), np.array(targets, dtype=np.int64)
