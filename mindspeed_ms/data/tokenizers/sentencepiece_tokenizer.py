# SPDX-License-Identifier: Apache-2.0
"""SentencePiece tokenizers.

Source: Megatron-LM core 0.12 ``data/tokenizers/tokenizer.py`` (behaviour).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mindspeed_ms.data.tokenizers.gap_tokens import sentinels
from mindspeed_ms.data.tokenizers.sentencepiece_model import load_processor


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
        self._model = load_processor(model_file)
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
        for sentinel in sentinels(vocab_extra_ids, "vocab_extra_ids"):
            self._add_special(sentinel)
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

    def token_to_id(self, token: str) -> int | None:
        """Id of one entry of the vocabulary; None when there is no such entry."""
        return self.vocab.get(token)

    def _piece_or(self, number: int, name: str) -> str:
        return self._model.id_to_piece(number) if number >= 0 else name

    def _add_special(self, piece: str) -> int:
        number = self.vocab.setdefault(piece, len(self.vocab))
        self._special[piece] = number
        return number


_MARK = "\u262f"
"""A sign that no vocabulary has."""
_SPACES = re.compile("(?<= )(?= )|^ | $")
"""Places at which a model would drop a space."""
_SEPARATOR = "\u2581"
"""How SentencePiece writes a space."""


class GPTSentencePieceTokenizer:
    """SentencePiece as it is; documents end with the model's end-of-sentence token.

    Args:
        model_file: SentencePiece model.
        special_tokens: texts that become one token each; those that are no pieces of the model get
            ids behind them.
        ignores_extra_spaces: read several spaces as the model does. False: where it reads them as
            one, each becomes a piece.

    Raises:
        ValueError: the file is missing, or no model.

    Source: Megatron-LM core 0.16 ``SentencePieceTokenizer`` (the two options).
    """

    _reference_class = "_GPTSentencePieceTokenizer"

    def __init__(
        self,
        model_file: str,
        special_tokens: Sequence[str] = (),
        ignores_extra_spaces: bool = True,
    ) -> None:
        self.unique_identifiers: dict[str, object] = {
            "class": self._reference_class,
            "tokenizer_path": [model_file],
            "vocab_extra_ids": "0",
        }
        self._model = load_processor(model_file)
        self.bos: int = self._model.bos_id()
        self.eos: int | None = self._model.eos_id() if self._model.eos_id() >= 0 else None
        self.pad: int | None = self._model.pad_id() if self._model.pad_id() >= 0 else None
        self._path = model_file
        self._special: dict[str, int] = {}
        size = self._model.get_piece_size()
        for token in special_tokens:
            number = self._model.piece_to_id(token)
            is_new = number == self._model.unk_id() and token not in self._special
            self._special.setdefault(token, size if is_new else number)
            size += is_new
        self._size = size
        if special_tokens:
            self.unique_identifiers["special_tokens"] = list(special_tokens)
        is_one = self._model.encode_as_ids("x  y") == self._model.encode_as_ids("x y")
        self._keeps_spaces = is_one and not ignores_extra_spaces

    @property
    def eod(self) -> int:
        """Id that ends a document: that of the end-of-sentence token.

        Raises:
            ValueError: there is none.
        """
        if self.eos is None:
            raise ValueError(
                f"tokenizer model {self._path} has no end-of-sentence token to end documents with; "
                "use --tokenizer-type SentencePieceTokenizer, which adds one"
            )
        return self.eos

    @property
    def vocab_size(self) -> int:
        """Pieces of the model, and special tokens added."""
        return self._size

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text."""
        if self._keeps_spaces:
            text = _SPACES.sub(f" {_MARK} ", text).rstrip()
        if not self._special:
            return self._spaced(text) if self._keeps_spaces else self._model.encode_as_ids(text)
        ids: list[int] = []
        pattern = "(" + "|".join(map(re.escape, self._special)) + ")"
        *parts, last = re.split(pattern, text)
        for place, part in enumerate(parts):
            if place % 2:
                ids.append(self._special[part])
                continue
            found = self._model.encode_as_ids(part)
            if place and found and found[0] == self._model.piece_to_id(_SEPARATOR):
                found = found[1:]  # the space that templates write behind a special token
            ids += found
        return ids + (self._spaced(last) if self._keeps_spaces else self._model.encode_as_ids(last))

    def _spaced(self, text: str) -> list[int]:
        """Ids of a text in which marks stand for spaces that the model would drop."""
        parts = [part for part in text.split(_MARK) if part]
        return [number for part in parts for number in self._model.encode_as_ids(part + _MARK)[:-1]]

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are spelled out between spaces."""
        ids = [int(number) for number in ids]
        if not self._special:
            return self._model.decode_ids(ids)
        by_id = {number: token for token, number in self._special.items()}
        text, start = "", 0
        for place, number in enumerate(ids):
            if number in by_id:
                text += f"{self._model.decode_ids(ids[start:place])} {by_id[number]} "
                start = place + 1
        return (text + self._model.decode_ids(ids[start:])).strip()

    def token_to_id(self, token: str) -> int | None:
        """Id of one entry of the vocabulary; None when there is no such entry."""
        if token in self._special:
            return self._special[token]
        number = self._model.piece_to_id(token)
        return number if self._model.id_to_piece(number) == token else None


class Llama2Tokenizer(GPTSentencePieceTokenizer):
    """Like ``GPTSentencePieceTokenizer``, each text beginning with the begin-of-sentence token."""

    _reference_class = "_Llama2Tokenizer"

    def tokenize(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """Token ids of a text, by default with the begin and without the end token."""
        ids = super().tokenize(text)
        return [self.bos] * bos + ids + ([self.eod] if eos else [])
