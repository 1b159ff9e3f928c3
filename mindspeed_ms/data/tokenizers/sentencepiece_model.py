# SPDX-License-Identifier: Apache-2.0
"""SentencePiece models: opened by ``sentencepiece``, or taken apart for ``tokenizers``.

Source: ``transformers`` 5.24 (which pieces become what; results are compared with it).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.files.regular_file import read_bytes

Tokenizer = Any
"""A ``tokenizers.Tokenizer``; the library is loaded only when it is needed."""

SPACE = "\u2581"
"""SentencePiece's sign for a space."""

# Kinds of pieces, and the model type of Unigram, in SentencePiece's file format.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_UNIGRAM = 1


def load_processor(path: str) -> sentencepiece.SentencePieceProcessor:
    """Open a model.

    Raises:
        ValueError: the file is missing or no model.
    """
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


@dataclass(frozen=True)
class Pieces:
    """A model taken apart.

    Ids are places in ``pieces``.
    """

    pieces: list[tuple[str, float]]
    """Text and score."""

    kinds: list[int]
    """Kind of each piece, as the file format numbers them."""

    is_unigram: bool
    byte_fallback: bool
    unk_id: int
    named: dict[str, str]
    """``bos_token``, ``eos_token``, ``unk_token`` -> piece; those the model has."""

    charsmap: bytes
    """Compiled rules of normalization; empty: none."""

    adds_dummy_prefix: bool
    removes_extra_whitespaces: bool
    escapes_whitespaces: bool

    def added(self) -> list[tuple[str, bool]]:
        """Pieces that no text is divided in: (text, whether it is a control piece)."""
        return [
            (text, kind == _CONTROL)
            for (text, _), kind in zip(self.pieces, self.kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]

    def vocab(self) -> dict[str, int]:
        """Text -> id."""
        return {text: number for number, (text, _) in enumerate(self.pieces)}


def read_pieces(path: Path) -> Pieces | None:
    """Take a model apart; None when the file is no SentencePiece model.

    Raises:
        RuntimeError: ``protobuf`` is not installed.
    """
    model_format = optional_libraries.load("sentencepiece.sentencepiece_model_pb2", path.name)
    messages = optional_libraries.load("google.protobuf.message", path.name)
    proto = model_format.ModelProto()
    try:
        proto.ParseFromString(read_bytes(path))
    except messages.DecodeError:
        return None
    if not proto.pieces:
        return None
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    named = {
        "bos_token": (trainer.bos_id, trainer.bos_piece or "<s>"),
        "eos_token": (trainer.eos_id, trainer.eos_piece or "</s>"),
        "unk_token": (trainer.unk_id, trainer.unk_piece or "<unk>"),
    }
    return Pieces(
        pieces=[(piece.piece, piece.score) for piece in proto.pieces],
        kinds=[piece.type for piece in proto.pieces],
        is_unigram=trainer.model_type == _UNIGRAM,
        byte_fallback=trainer.byte_fallback,
        unk_id=trainer.unk_id,
        named={name: piece for name, (number, piece) in named.items() if number >= 0},
        charsmap=rules.precompiled_charsmap,
        adds_dummy_prefix=rules.add_dummy_prefix,
        removes_extra_whitespaces=rules.remove_extra_whitespaces,
        escapes_whitespaces=rules.escape_whitespaces,
    )


def merges_by_id(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Merges of BPE that the pieces imply; the piece with the lower id is made first."""
    return [
        (piece[:at], piece[at:])
        for piece in sorted(vocab, key=vocab.__getitem__)
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]


def _merges_by_score(texts: list[str], pieces: Pieces) -> list[tuple[str, str]]:
    """Merges of BPE, the piece with the higher score first; only normal pieces take part."""
    normal = {
        text: (-score, number)
        for number, (text, (_, score), kind) in enumerate(
            zip(texts, pieces.pieces, pieces.kinds, strict=True)
        )
        if kind == _NORMAL
    }
    ranked = [
        (*rank, text[:at], text[at:])
        for text, rank in normal.items()
        for at in range(1, len(text))
        if text[:at] in normal and text[at:] in normal
    ]
    return [(left, right) for _, _, left, right in sorted(ranked)]


def as_tokenizer(pieces: Pieces, renamed: dict[int, str], legacy: bool) -> Tokenizer:
    """A ``tokenizers.Tokenizer`` that encodes as the model's own settings say.

    Args:
        pieces: the model.
        renamed: id -> text of placeholder pieces that have been given a meaning.
        legacy: a space goes before every stretch between added tokens, not only before the text.
    """
    library = optional_libraries.load("tokenizers", "a SentencePiece model")
    kept = {text for number, (text, _) in enumerate(pieces.pieces) if number not in renamed}
    texts = [
        renamed[number] if renamed.get(number, text) not in kept else text
        for number, (text, _) in enumerate(pieces.pieces)
    ]
    user_defined = [
        text for text, kind in zip(texts, pieces.kinds, strict=True) if kind == _USER_DEFINED
    ]
    tokenizer = library.Tokenizer(_model(library, pieces, texts, bool(user_defined)))
    tokenizer.normalizer = _normalizer(library, pieces, legacy)
    steps = []
    if pieces.adds_dummy_prefix:
        scheme = "always" if legacy else "first"
        steps.append(library.pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False))
    if user_defined:
        longest_first = sorted(user_defined, key=len, reverse=True)
        pattern = library.Regex("|".join(map(re.escape, longest_first)))
        steps.append(library.pre_tokenizers.Split(pattern, behavior="isolated"))
    if steps:
        tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence(steps)
    tokenizer.decoder = _decoder(library, pieces)
    return tokenizer


def _model(library: Any, pieces: Pieces, texts: list[str], ignore_merges: bool) -> Any:
    if pieces.is_unigram:
        scored = [(text, score) for text, (_, score) in zip(texts, pieces.pieces, strict=True)]
        return library.models.Unigram(
            scored, unk_id=pieces.unk_id, byte_fallback=pieces.byte_fallback
        )
    return library.models.BPE(
        {text: number for number, text in enumerate(texts)},
        _merges_by_score(texts, pieces),
        unk_token=pieces.named.get("unk_token", "<unk>"),
        fuse_unk=True,
        byte_fallback=pieces.byte_fallback,
        ignore_merges=ignore_merges,
    )


def _normalizer(library: Any, pieces: Pieces, legacy: bool) -> Any:
    make = library.normalizers
    steps = []
    if pieces.charsmap:
        steps.append(make.Precompiled(pieces.charsmap))
    if pieces.removes_extra_whitespaces:
        # SentencePiece counts spaces only; line ends and tabs stay.
        steps.append(make.Replace(library.Regex(r"\A +| +\z"), ""))
        steps.append(make.Replace(library.Regex(" {2,}"), " "))
    if pieces.escapes_whitespaces:
        steps.append(make.Replace(" ", SPACE))
    if pieces.adds_dummy_prefix and legacy:
        # Metaspace puts no space before a text that begins with one, SentencePiece does.
        steps.append(make.Replace(library.Regex(rf"\A{SPACE}"), SPACE * 2))
    return make.Sequence(steps)


def _decoder(library: Any, pieces: Pieces) -> Any:
    make = library.decoders
    steps = [make.Replace(SPACE, " ")]
    if pieces.byte_fallback:
        steps.append(make.ByteFallback())
    if pieces.byte_fallback or pieces.adds_dummy_prefix:
        steps.append(make.Fuse())
    if pieces.adds_dummy_prefix:
        # Each token is stripped; only the start of the text shall be, so Fuse goes before.
        steps.append(make.Strip(" ", 1, 0))
    return make.Sequence(steps)
