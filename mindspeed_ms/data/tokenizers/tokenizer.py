# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back.

The ids, the special tokens and the identifiers (part of the index cache names) are Megatron's, so
data and caches made by either framework fit the other. Everything is read from local files.

Source: Megatron-LM core 0.12 ``data/tokenizers/tokenizer.py`` (behaviour).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from mindspeed_ms.data.tokenizers.bpe_tokenizers import GPT2BPETokenizer, HuggingFaceTokenizer
from mindspeed_ms.data.tokenizers.sentencepiece_tokenizer import (
    GPTSentencePieceTokenizer,
    Llama2Tokenizer,
    SentencePieceTokenizer,
)
from mindspeed_ms.data.tokenizers.sft_tokenizer import DEFAULT_PROMPT_FORMAT, SFTTokenizer
from mindspeed_ms.data.tokenizers.tiktoken_tokenizer import TikTokenizer


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


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSettings:
    """What a tokenizer is built from; the names are those of Megatron's flags."""

    tokenizer_type: str
    """One of ``TOKENIZER_TYPES``."""

    tokenizer_model: str | None = None
    """SentencePiece model, tiktoken vocabulary, or Hugging Face folder or ``tokenizer.json``."""

    vocab_file: str | None = None
    """``vocab.json`` of a GPT-2 tokenizer."""

    merge_file: str | None = None
    """``merges.txt`` of a GPT-2 tokenizer."""

    vocab_size: int | None = None
    """Ids of ``NullTokenizer`` (its end-of-document id excluded) or of ``TikTokenizer``."""

    tokenizer_sentencepiece_legacy: bool = False
    """Give a SentencePiece tokenizer ``tiktoken_special_tokens``."""

    tokenizer_sentencepiece_ignore_extra_whitespaces: bool = True
    """Read several spaces as one where a SentencePiece model does."""

    null_tokenizer_eod_id: int | None = None
    """Id with which ``NullTokenizer`` ends documents. None: the one behind the others."""

    null_tokenizer_pad_id: int = -1
    """Id with which ``NullTokenizer`` fills short samples; below 0: none."""

    vocab_extra_ids: int = 0
    """Sentinel tokens ``<extra_id_0>`` ... of ``SentencePieceTokenizer``."""

    tiktoken_pattern: str | None = None
    """How ``TikTokenizer`` cuts a text before merging: v1 or v2."""

    tiktoken_num_special_tokens: int = 1000
    """Ids at the start of the vocabulary of ``TikTokenizer`` that no text becomes."""

    tiktoken_special_tokens: Sequence[str] | None = None
    """The first of them. None: ``<unk>``, ``<s>``, ``</s>``."""

    tokenizer_use_fast: bool = True
    """Let the transformers library take its compiled implementation where it has one."""

    trust_remote_code: bool = False
    """Let the transformers library run Python code that lies in the tokenizer's folder."""

    sft_tokenizer_prompt_format: str = DEFAULT_PROMPT_FORMAT
    """How ``SFTTokenizer`` writes a conversation."""


def build_tokenizer(
    tokenizer_type: str | Namespace | TokenizerSettings, **options: Any
) -> Tokenizer:
    """Build the tokenizer that ``--tokenizer-type`` names.

    Args:
        tokenizer_type: one of ``TOKENIZER_TYPES``; or all settings, as an object or as parsed
            arguments.
        **options: fields of ``TokenizerSettings``.

    Raises:
        ValueError: an unknown type, or something the type needs is missing or unusable.
        RuntimeError: a library the type needs is not installed.
    """
    settings = _settings(tokenizer_type, options)
    if settings.tokenizer_type not in _BUILDERS:
        files = [name for name in (settings.vocab_file, settings.merge_file) if name is not None]
        raise ValueError(
            f"tokenizer type {settings.tokenizer_type!r}{f' (files {files})' if files else ''} is "
            f"not available; use one of {', '.join(TOKENIZER_TYPES)}"
        )
    return _BUILDERS[settings.tokenizer_type](settings)


def _settings(
    source: str | Namespace | TokenizerSettings, options: dict[str, Any]
) -> TokenizerSettings:
    if isinstance(source, TokenizerSettings):
        return source
    if isinstance(source, str):
        return TokenizerSettings(tokenizer_type=source, **options)
    names = {field.name for field in fields(TokenizerSettings)}
    given = {name: value for name, value in vars(source).items() if name in names}
    given = {name: value for name, value in given.items() if value is not None} | options
    if "tokenizer_type" not in given:
        raise ValueError("the arguments name no tokenizer; set --tokenizer-type")
    return TokenizerSettings(**given)


def _needed(settings: TokenizerSettings, name: str, what: str) -> Any:
    value = getattr(settings, name)
    if value is None:
        raise ValueError(f"{settings.tokenizer_type} needs {what}; set --{name.replace('_', '-')}")
    return value


def _build_tiktoken(settings: TokenizerSettings) -> Tokenizer:
    return TikTokenizer(
        _needed(settings, "tokenizer_model", "the .json file of its vocabulary"),
        _needed(settings, "tiktoken_pattern", "the pattern it cuts a text with, v1 or v2"),
        vocab_size=settings.vocab_size,
        num_special_tokens=settings.tiktoken_num_special_tokens,
        special_tokens=settings.tiktoken_special_tokens,
    )


def _of_sentencepiece(settings: TokenizerSettings) -> dict[str, Any]:
    special = settings.tiktoken_special_tokens
    if special and not settings.tokenizer_sentencepiece_legacy:
        raise ValueError(
            f"{settings.tokenizer_type} has the special tokens of its model; add "
            "--tokenizer-sentencepiece-legacy, or leave --tokenizer-special-tokens out"
        )
    return {
        "special_tokens": tuple(special or ()),
        "ignores_extra_spaces": settings.tokenizer_sentencepiece_ignore_extra_whitespaces,
    }


def _build_sentencepiece(settings: TokenizerSettings) -> Tokenizer:
    is_plain = settings.tokenizer_sentencepiece_ignore_extra_whitespaces
    if settings.tokenizer_sentencepiece_legacy or not is_plain:
        raise ValueError(
            "SentencePieceTokenizer has Megatron's own special tokens and the model's spaces; use "
            "GPTSentencePieceTokenizer with --tokenizer-sentencepiece-..."
        )
    model = _needed(settings, "tokenizer_model", _SENTENCEPIECE)
    return SentencePieceTokenizer(model, settings.vocab_extra_ids)


_SENTENCEPIECE = "a SentencePiece model"
_FOLDER = "the folder (or tokenizer.json) of a Hugging Face tokenizer"


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


class NullTokenizer:
    """Numbers separated by single spaces; for data that is made of token ids.

    Args:
        vocab_size: ids 0 ... vocab_size - 1; ``vocab_size`` itself is one more.
        eod: id that ends documents; None: ``vocab_size``.
        pad: id that fills short samples; below 0: none.

    Raises:
        ValueError: fewer than one id, or an id beyond them.
    """

    def __init__(self, vocab_size: int, eod: int | None = None, pad: int = -1) -> None:
        if int(vocab_size) < 1:
            raise ValueError(f"vocab_size ({vocab_size}) must be at least 1; set --vocab-size")
        self.unique_identifiers: dict[str, object] = {
            "class": "_NullTokenizer",
            "tokenizer_path": [None],
            "vocab_size": str(vocab_size),
        }
        self._vocab_size = int(vocab_size) + 1
        for name, number in (("eod", eod), ("pad", pad)):
            if number is not None and number >= self._vocab_size:
                raise ValueError(
                    f"--null-tokenizer-{name}-id {number} is no id of {self._vocab_size}; give one "
                    f"below {self._vocab_size} or raise --vocab-size"
                )
        self.eod = int(vocab_size) if eod is None else eod
        self.eos = self.eod
        self.pad: int | None = pad if pad >= 0 else None
        if eod is not None:  # samples depend on where documents end
            self.unique_identifiers["eod"] = str(eod)

    @property
    def vocab_size(self) -> int:
        """Numbers and the end-of-document id."""
        return self._vocab_size

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


_BUILDERS: dict[str, Callable[[TokenizerSettings], Tokenizer]] = {
    "SentencePieceTokenizer": _build_sentencepiece,
    "GPTSentencePieceTokenizer": lambda settings: GPTSentencePieceTokenizer(
        _needed(settings, "tokenizer_model", _SENTENCEPIECE), **_of_sentencepiece(settings)
    ),
    "Llama2Tokenizer": lambda settings: Llama2Tokenizer(
        _needed(settings, "tokenizer_model", _SENTENCEPIECE), **_of_sentencepiece(settings)
    ),
    "GPT2BPETokenizer": lambda settings: GPT2BPETokenizer(
        _needed(settings, "vocab_file", "its vocabulary, vocab.json"),
        _needed(settings, "merge_file", "its merges, merges.txt"),
    ),
    "HuggingFaceTokenizer": lambda settings: HuggingFaceTokenizer(
        _needed(settings, "tokenizer_model", _FOLDER),
        trust_remote_code=settings.trust_remote_code,
        use_fast=settings.tokenizer_use_fast,
    ),
    "TikTokenizer": _build_tiktoken,
    "SFTTokenizer": lambda settings: SFTTokenizer(
        _needed(settings, "tokenizer_model", _FOLDER), settings.sft_tokenizer_prompt_format
    ),
    "NullTokenizer": lambda settings: NullTokenizer(
        _needed(settings, "vocab_size", "the number of token ids"),
        settings.null_tokenizer_eod_id,
        settings.null_tokenizer_pad_id,
    ),
}

_FOLDERS = (
    "PretrainedFromHF",  # MindSpeed
    *("DeepSeekV2Tokenizer", "DeepSeekV3Tokenizer", "LLama2Tokenizer", "LLama3Tokenizer"),  # Pai
    *("Qwen2Tokenizer", "Qwen3Tokenizer", "MixtralTokenizer"),
    *("HFTokenizerFS", "Llama3TokenizerFS", "Qwen2TokenizerFS", "QwenTokenizerFS"),  # FlagScale
)
"""Other projects' names of what a folder of transformers holds."""

_BUILDERS.update(dict.fromkeys(_FOLDERS, _BUILDERS["HuggingFaceTokenizer"]))

TOKENIZER_TYPES = tuple(_BUILDERS)
"""Values of ``--tokenizer-type``."""
