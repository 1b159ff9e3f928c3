# SPDX-License-Identifier: Apache-2.0
"""SentencePiece models of one kind: BPE, texts as they are, ids of Llama's special tokens."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece


class TrainingError(ValueError):
    """The library cannot learn from the texts; the message is its own."""


def train_sentencepiece(texts: Iterable[str], vocab_size: int, **options: Any) -> bytes:
    """Learn a model from texts; what ``SentencePieceTokenizer`` reads as a file.

    With ``num_threads=1`` the model depends on texts, options and the version of the library only.

    Args:
        texts: of one sentence each; the library leaves out what is very long.
        vocab_size: tokens of the model, special ones among them.
        options: of ``SentencePieceTrainer`` beside those set here.

    Raises:
        TrainingError: the library cannot learn so many tokens from the texts.
        Exception: whatever reading ``texts`` raises.
    """
    model = io.BytesIO()  # the name of a file would become part of the model
    failed: list[Exception] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_noting(texts, failed),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            normalization_rule_name="identity",
            minloglevel=2,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,  # there is none
            **options,
        )
    except (RuntimeError, OSError, ValueError) as error:
        if failed:  # the library repeats it with names of its own
            raise failed[0] from None
        raise TrainingError(str(error)) from None
    return model.getvalue()


def _noting(texts: Iterable[str], failed: list[Exception]) -> Iterator[str]:
    """The texts; an error that reading them raises is kept."""
    try:
        yield from texts
    except Exception as error:
        failed.append(error)
        raise
