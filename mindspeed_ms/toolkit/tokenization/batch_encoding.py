# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer's call returns: a dictionary that remembers where each token came from."""

from __future__ import annotations

import importlib
import sys
from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mindspeed_ms.toolkit.given import shown

Encoding = Any
"""A ``tokenizers.Encoding``."""

TENSOR_TYPES = ("ms", "np")
"""Values of ``return_tensors``: MindSpore tensors of int32, NumPy arrays of int64."""


class CharSpan(NamedTuple):
    """Characters ``start`` to ``end`` (excluded) of a text."""

    start: int
    end: int


class BatchEncoding(UserDict):
    """Ids and what goes with them, by name; also as attributes.

    Args:
        data: name -> list, list of lists, or tensor.
        encodings: one a sequence, as the library made them.
        tensor_type: ``ms``, ``np`` or None, which keeps lists.

    Raises:
        ValueError: sequences of different lengths do not make a tensor.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encodings: Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
    ) -> None:
        super().__init__(data)
        self._encodings = encodings
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(data)}")

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return self.data[key]
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.data.items()}
        return self._encoding(key)

    @property
    def encodings(self) -> Sequence[Encoding] | None:
        """The library's own result, one a sequence."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether tokens know their place in the text."""
        return self._encodings is not None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Tokens of one sequence."""
        return self._encoding(batch_index).tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token 0 or 1, the text of a pair it is from; None for special tokens."""
        return self._encoding(batch_index).sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token the number of its word; None for special tokens."""
        return self._encoding(batch_index).word_ids

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """Characters that a token stands for; None for special tokens."""
        batch, token = _pair(batch_or_token_index, token_index)
        span = self._encoding(batch).token_to_chars(token)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Number of the token that a character became part of."""
        batch, char = _pair(batch_or_char_index, char_index)
        return self._encoding(batch).char_to_token(char, sequence_index)

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchEncoding:
        """Turn the lists into tensors, in place.

        Raises:
            ValueError: an unknown type, or sequences of different lengths.
        """
        if tensor_type is None:
            return self
        if not isinstance(tensor_type, str) or tensor_type not in TENSOR_TYPES:
            raise ValueError(
                f"return_tensors is {shown(tensor_type)}; use 'ms' (MindSpore), 'np' (NumPy) or "
                "None"
            )
        for name, value in self.data.items():
            self.data[name] = as_tensor(name, value, tensor_type)
        return self

    def _encoding(self, number: int) -> Encoding:
        if self._encodings is None:
            raise ValueError(
                "these ids were not made from a text, so their tokens have no place in one"
            )
        if not -len(self._encodings) <= number < len(self._encodings):
            raise ValueError(f"there is no text {number} here, but {len(self._encodings)} texts")
        return self._encodings[number]


def _pair(first: int, second: int | None) -> tuple[int, int]:
    return (0, first) if second is None else (first, second)


def as_tensor(name: str, value: Any, tensor_type: str) -> Any:
    """A tensor of one entry.

    Raises:
        ValueError: sequences of different lengths.
    """
    try:
        array = np.asarray(value, dtype=np.int64)
    except ValueError as error:
        raise ValueError(
            f"{name} has sequences of different lengths, which make no tensor; set padding=True "
            "and truncation=True"
        ) from error
    if tensor_type == "np":
        return array
    return importlib.import_module("mindspeed_ms.toolkit.tokenization.tensors").tensor(array)


def as_lists(value: Any) -> Any:
    """Numbers of arrays and tensors as nested lists; lists and numbers as they are."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        if value and type(value[0]) is int:
            return list(value)
        return [as_lists(inner) for inner in value]
    # A tensor can only come from a library that is loaded.
    if "mindspore" in sys.modules:
        tensors = importlib.import_module("mindspeed_ms.toolkit.tokenization.tensors")
        return tensors.to_lists(value)
    return value
