# SPDX-License-Identifier: Apache-2.0
"""Rows of the embedding that flags ask for."""

from __future__ import annotations

from typing import Any, Protocol

from mindspeed_ms.config.transformer_config import padded_vocab_size


class Given(Protocol):
    """Arguments by attribute."""

    def __getattr__(self, name: str) -> Any:
        """Return an argument; None if it is absent or not given."""


def rows_of(tokens: int, given: Given) -> int:
    """Return the rows that a vocabulary has, padding included unless that is switched off.

    Args:
        tokens: of the tokenizer.
        given: the arguments.

    """
    tokens += given.extra_vocab_size or 0
    if given.pad_vocab_size is False:
        return tokens
    multiple = given.make_vocab_size_divisible_by or 1
    return padded_vocab_size(tokens, multiple, given.tensor_model_parallel_size or 1)
