"""Text to token ids and back.

The ids, the special tokens and the identifiers (part of the index cache names) are Megatron's, so
data and caches made by either framework fit the other.

Source: Megatron-LM core 0.12 ``training/tokenizer/tokenizer.py`` (behaviour).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Protocol

import sentencepiece

TOKENIZER_TYPES = (
    "SentencePieceTokenizer",
    "GPTSentencePieceTokenizer",
    "Llama2Tokenizer",
    "NullTokenizer",
)
"""Values of ``--tokenizer-type`` that can be built."""


class Tokenizer(Protocol):
    """What every tokenizer offers."""

    unique_identifiers: dict[str, object]

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included, padding of the embedding excluded."""
        ...

    @property
    def eod(self) -> int:
        """Id that ends a document."""
        ...

    @property
    def eos(self) -> int | None:
        """Id that ends a sentence or turn."""
        ...

    @property
    def pad(self) -> int | None:
        """Id that fills short samples; None when there is none."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        ...


def build_tokenizer(
    tokenizer_type: str,
    *,
    tokenizer_model: str | None = None,
    vocab_file: str | None = None,
    merge_file: str | None = None,
    vocab_size: int | None = None,
    vocab_extra_ids: int = 0,
) -> Tokenizer:
    """Build the tokenizer that ``--tokenizer-type`` names.

    Args:
        tokenizer_type: one of ``TOKENIZER_TYPES``.
        tokenizer_model: SentencePiece model file.
        vocab_file: vocabulary of a GPT-2 tokenizer; none of the available types reads it.
        merge_file: merges of a GPT-2 tokenizer; none of the available types reads it.
        vocab_size: number of ids of ``NullTokenizer``, its end-of-document id excluded.
        vocab_extra_ids: sentinel tokens ``<extra_id_0>`` ... of ``SentencePieceTokenizer``.

    Raises:
        ValueError: an unknown type, or something the type needs is missing or unusable.
    """
    if tokenizer_type == "NullTokenizer":
        if vocab_size is None:
            raise ValueError("NullTokenizer needs the number of token ids; set --vocab-size")
        return NullTokenizer(vocab_size)
    if tokenizer_type not in TOKENIZER_TYPES:
        files = [name for name in (vocab_file, merge_file) if name is not None]
        raise ValueError(
            f"tokenizer type {tokenizer_type!r}{f' (files {files})' if files else ''} is not "
            f"available; use one of {', '.join(TOKENIZER_TYPES)}"
        )
    if tokenizer_model is None:
        raise ValueError(f"{tokenizer_type} needs a SentencePiece model; set --tokenizer-model")
    if tokenizer_type == "SentencePieceTokenizer":
        return SentencePieceTokenizer(tokenizer_model, vocab_extra_ids)
    if tokenizer_type == "GPTSentencePieceTokenizer":
        return GPTSentencePieceTokenizer(tokenizer_model)
    return Llama2Tokenizer(tokenizer_model)


def vocab_size_with_padding(
    vocab_size: int, make_vocab_size_divisible_by: int = 128, tensor_model_parallel_size: int = 1
) -> int:
    """Rows of the embedding: the vocabulary rounded up to a multiple that all ranks can share.

    Raises:
        ValueError: a number below 1.

    >>> vocab_size_with_padding(505, 128, 2)
    512
    """
    if min(vocab_size, make_vocab_size_divisible_by, tensor_model_parallel_size) < 1:
        raise ValueError(
            f"vocab_size ({vocab_size}), make_vocab_size_divisible_by "
            f"({make_vocab_size_divisible_by}) and tensor_model_parallel_size "
            f"({tensor_model_parallel_size}) must each be at least 1"
        )
    multiple = make_vocab_size_divisible_by * tensor_model_parallel_size
    return -(-vocab_size // multiple) * multiple


def _load_model(path: str) -> sentencepiece.SentencePieceProcessor:
    if not os.path.isfile(path):
        raise ValueError(
            f"tokenizer model {path} is not a file; --tokenizer-model needs the path of a "
            "SentencePiece .model file"
        )
    try:
        return sentencepiece.SentencePieceProcessor(model_file=path)
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"tokenizer model {path} is not a SentencePiece model ({error}); give the .model file"
        ) from error


class SentencePieceTokenizer:
    """SentencePiece with Megatron's special tokens added behind the model's own pieces.

    Added when the model lacks them: ``<CLS>``, ``<SEP>``, ``<EOD>``, ``<MASK>``, then ``<PAD>``,
    ``<BOS>``, ``<EOS>`` (under the model's own names where it has them), then the extra ids. Their
    spelling in a text becomes their id.

    Args:
        model_file: SentencePiece model.
        vocab_extra_ids: number of sentinel tokens ``<extra_id_0>`` ...

    Raises:
        ValueError: the file is missing or no model.
    """

    def __init__(self, model_file: str, vocab_extra_ids: int = 0) -> None:
        self.unique_identifiers: dict[str, object] = {
            "class": "_SentencePieceTokenizer",
            "tokenizer_path": [model_file],
            "vocab_extra_ids": str(vocab_extra_ids),
        }
        self._model = _load_model(model_file)
        model = self._model
        self.vocab: dict[str, int] = {
            model.id_to_piece(number): number for number in range(model.get_piece_size())
        }
        self._special: dict[str, int] = {}
        self.cls = self._add_special("<CLS>")
        self.sep = self._add_special("<SEP>")
        self.eod = self._add_special("<EOD>")
        self.mask = self._add_special("<MASK>")
        self.pad = self._add_special(self._piece_or(model.pad_id(), "<PAD>"))
        self.bos = self._add_special(self._piece_or(model.bos_id(), "<BOS>"))
        self.eos = self._add_special(self._piece_or(model.eos_id(), "<EOS>"))
        for number in range(vocab_extra_ids):
            self._add_special(f"<extra_id_{number}>")
        self.inv_vocab = {number: piece for piece, number in self.vocab.items()}
        self._special_by_id = {number: piece for piece, number in self._special.items()}
        self._pattern = re.compile("(" + "|".join(map(re.escape, self._special)) + ")")

    @property
    def vocab_size(self) -> int:
        """Pieces of the model and the tokens added."""
        return len(self.vocab)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text; special tokens spelled out in it become their ids."""
        ids: list[int] = []
        for place, part in enumerate(self._pattern.split(text)):
            if place % 2:
                ids.append(self._special[part])
            elif part:
                ids.extend(self._model.encode_as_ids(part))
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are spelled out between spaces."""
        ids = [int(number) for number in ids]
        text, start = "", 0
        for place, number in enumerate(ids):
            if number in self._special_by_id:
                before = self._model.decode_ids(ids[start:place])
                text += f"{before} {self._special_by_id[number]} "
                start = place + 1
        return text + self._model.decode_ids(ids[start:])

    def _piece_or(self, number: int, name: str) -> str:
        return self._model.id_to_piece(number) if number >= 0 else name

    def _add_special(self, piece: str) -> int:
        number = self.vocab.setdefault(piece, len(self.vocab))
        self._special[piece] = number
        return number


class GPTSentencePieceTokenizer:
    """SentencePiece as it is; documents end with the model's end-of-sentence token.

    Args:
        model_file: SentencePiece model.

    Raises:
        ValueError: the file is missing, no model, or a model without end-of-sentence token.
    """

    _reference_class = "_GPTSentencePieceTokenizer"

    def __init__(self, model_file: str) -> None:
        self.unique_identifiers: dict[str, object] = {
            "class": self._reference_class,
            "tokenizer_path": [model_file],
            "vocab_extra_ids": "0",
        }
        self._model = _load_model(model_file)
        self.bos: int = self._model.bos_id()
        self.eos: int = self._model.eos_id()
        self.eod: int = self.eos
        self.pad: int | None = self._model.pad_id() if self._model.pad_id() >= 0 else None
        if self.eos < 0:
            raise ValueError(
                f"tokenizer model {model_file} has no end-of-sentence token to end documents with; "
                "use --tokenizer-type SentencePieceTokenizer, which adds one"
            )

    @property
    def vocab_size(self) -> int:
        """Pieces of the model."""
        return self._model.get_piece_size()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._model.encode_as_ids(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self._model.decode_ids([int(number) for number in ids])


class Llama2Tokenizer(GPTSentencePieceTokenizer):
    """Like ``GPTSentencePieceTokenizer``, each text beginning with the begin-of-sentence token."""

    _reference_class = "_Llama2Tokenizer"

    def tokenize(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """Token ids of a text, by default with the begin and without the end token."""
        ids = self._model.encode_as_ids(text)
        return [self.bos] * bos + ids + [self.eos] * eos


class NullTokenizer:
    """Numbers separated by single spaces; for data that is made of token ids.

    Args:
        vocab_size: ids 0 ... vocab_size - 1; ``vocab_size`` itself ends documents.

    Raises:
        ValueError: fewer than one id.
    """

    def __init__(self, vocab_size: int) -> None:
        if int(vocab_size) < 1:
            raise ValueError(f"vocab_size ({vocab_size}) must be at least 1; set --vocab-size")
        self.unique_identifiers: dict[str, object] = {
            "class": "_NullTokenizer",
            "tokenizer_path": [None],
            "vocab_size": str(vocab_size),
        }
        self.eod = int(vocab_size)
        self.eos = self.eod
        self.pad: int | None = None

    @property
    def vocab_size(self) -> int:
        """Numbers and the end-of-document id."""
        return self.eod + 1

    def tokenize(self, text: str) -> list[int]:
        """Read the numbers.

        Raises:
            ValueError: a part that is no number.
        """
        try:
            return [int(part) for part in text.split(" ")]
        except ValueError as error:
            raise ValueError(
                f"NullTokenizer reads numbers separated by single spaces, not {text[:40]!r}; "
                "choose another --tokenizer-type for text"
            ) from error

    def detokenize(self, ids: Sequence[int]) -> str:
        """Write the numbers."""
        return " ".join(str(int(number)) for number in ids)
