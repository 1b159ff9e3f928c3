# SPDX-License-Identifier: Apache-2.0
"""Fill-in-the-middle: parts of a document change places, so that the model learns to fill gaps.

Source: Megatron-LM core 0.16 ``training/datasets/fim_dataset.py`` (behaviour). Deliberate
differences: the random choices of a sample depend on the seed and its number only, so that a
resumed run sees the same samples however many workers read them; Megatron draws from one stream
per worker process. The extra token at the end of a sample is read as elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.gpt_dataset import GPTDataset, SequenceStore
from mindspeed_ms.data.gpt_dataset_config import GPTFIMDatasetConfig
from mindspeed_ms.data.utils import Split

Tokens = NDArray[np.int64]


class TextTokenizer(Protocol):
    """What rearranging asks of a tokenizer beside the ids of a dataset."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...

    def detokenize(self, ids: list[int]) -> str:
        """Text of token ids."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Id of one entry of the vocabulary; None when there is no such entry."""
        ...


class GPTFIMDataset(GPTDataset):
    """``GPTDataset`` whose documents are partly rearranged.

    A rearranged part becomes ``<prefix> p <suffix> s <middle> m`` or
    ``<prefix> <suffix> s <middle> p m``, cut at two random characters. Samples keep their length:
    what no longer fits is cut off, what is missing is filled with the pad token.

    Args:
        indexed_dataset: the token file.
        dataset_path: its prefix as the user wrote it; part of the cache names.
        indexed_indices: numbers of the sequences that belong to this split.
        num_samples: samples needed, or None for one pass over the sequences.
        index_split: which split this is.
        config: options; its tokenizer must also read and write text.

    Raises:
        ValueError: the tokenizer cannot write text, or lacks one of the tokens.
    """

    def __init__(
        self,
        indexed_dataset: SequenceStore,
        dataset_path: str | None,
        indexed_indices: NDArray[np.int32],
        num_samples: int | None,
        index_split: Split,
        config: GPTFIMDatasetConfig,
    ) -> None:
        super().__init__(
            indexed_dataset, dataset_path, indexed_indices, num_samples, index_split, config
        )
        self._fim = config
        names = config.fim_extra_tokens
        self._prefix, self._middle, self._suffix, self._fill, self._eod = (
            self._id_of(names[part]) for part in ("prefix", "middle", "suffix", "pad", "eod")
        )
        split = config.fim_split_sample
        self._separator = None if split is None else self._id_of(split)

    def _id_of(self, token: str) -> int:
        if not hasattr(self.config.tokenizer, "token_to_id"):
            raise ValueError(
                f"fill-in-the-middle needs a tokenizer that reads and writes text, not "
                f"{type(self.config.tokenizer).__name__}; set --tokenizer-type"
            )
        number = self.config.tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(
                f"the tokenizer has no token {token!r}, which fill-in-the-middle uses; name one "
                "it has with the --fim-...-token flags, or add it to the tokenizer"
            )
        return number

    def _text(self, row: int, number: int) -> Tokens:
        text = super()._text(row, number)
        rng = np.random.RandomState([self.config.random_seed % 2**32, number])
        parts: list[Tokens] = []
        for segment, end in _pieces(text, self._eod):
            if len(segment) or end is None:
                parts.append(self._rearrange_document(segment, rng))
                parts.append(np.array([] if end is None else [end], dtype=np.int64))
        changed = np.concatenate(parts)[: len(text)]
        missing = np.full(len(text) - len(changed), self._fill, dtype=np.int64)
        return np.concatenate([changed, missing])

    def _rearrange_document(self, tokens: Tokens, rng: np.random.RandomState) -> Tokens:
        """Rearrange a document, or each of the parts its separator divides it into."""
        if self._separator is None or not (tokens == self._separator).any():
            return self._rearrange(tokens, self._fim.fim_rate, rng)
        if not rng.binomial(1, self._fim.fim_rate):
            return tokens
        rate = self._fim.fim_fragment_rate
        assert rate is not None, "the config refuses a separator without a rate"
        parts: list[Tokens] = []
        for fragment, end in _pieces(tokens, self._separator):
            if len(fragment) or end is None:
                parts.append(self._rearrange(fragment, rate, rng))
                parts.append(np.array([] if end is None else [end], dtype=np.int64))
        return np.concatenate(parts)

    def _rearrange(self, tokens: Tokens, rate: float, rng: np.random.RandomState) -> Tokens:
        if not rng.binomial(1, rate):
            return tokens
        tokenizer: TextTokenizer = self.config.tokenizer  # type: ignore[assignment]
        text = tokenizer.detokenize(tokens.tolist())
        if self._fim.fim_no_prefix is not None and text.startswith(self._fim.fim_no_prefix):
            return tokens
        first, last = sorted(rng.randint(0, len(text) + 1, size=2).tolist())
        encode: Callable[[str], list[int]] = tokenizer.tokenize
        prefix, middle, suffix = encode(text[:first]), encode(text[first:last]), encode(text[last:])
        if rng.binomial(1, self._fim.fim_spm_rate):
            ids = [self._prefix, self._suffix, *suffix, self._middle, *prefix, *middle]
        else:
            ids = [self._prefix, *prefix, self._suffix, *suffix, self._middle, *middle]
        return np.array(ids, dtype=np.int64)


def _pieces(tokens: Tokens, separator: int) -> Iterator[tuple[Tokens, int | None]]:
    """Pieces between separators, with the separator behind each; None behind the last."""
    start = 0
    for place in np.flatnonzero(tokens == separator).tolist():
        yield tokens[start:place], separator
        start = place + 1
    yield tokens[start:], None
