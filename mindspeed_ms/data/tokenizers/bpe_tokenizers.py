# SPDX-License-Identifier: Apache-2.0
"""GPT-2's byte-level BPE and Hugging Face tokenizers, both by Hugging Face's ``tokenizers``.

GPT-2's words are found by ``regex``, as in Megatron: libraries differ in the characters they know.

Source: Megatron-LM core 0.12 ``data/tokenizers/{tokenizer,gpt2_tokenization}.py`` (behaviour).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.data.tokenizers.assembly import load
from mindspeed_ms.data.tokenizers.byte_level import read_json, symbols_of_bytes
from mindspeed_ms.files.regular_file import read_text

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"

# Cuts a text into words before merging; the one GPT-2 was trained with.
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_MAX_KNOWN_WORDS = 1 << 20


class GPT2BPETokenizer:
    """Byte-level BPE from ``vocab.json`` and ``merges.txt``.

    ``<|endoftext|>`` ends documents; its spelling in a text is text like any other.

    Args:
        vocab_file: token -> id.
        merge_file: a version line, then one merge a line, most frequent first.

    Raises:
        ValueError: a file is missing or is not what it should be.
        RuntimeError: ``tokenizers`` or ``regex`` is not installed.
    """

    def __init__(self, vocab_file: str, merge_file: str) -> None:
        self.unique_identifiers: dict[str, object] = {
            "class": "_GPT2BPETokenizer",
            "tokenizer_path": [vocab_file, merge_file],
        }
        self.vocab = _read_vocab(vocab_file)
        self.inv_vocab = {number: token for token, number in self.vocab.items()}
        if END_OF_TEXT not in self.vocab:
            raise ValueError(
                f"vocabulary {vocab_file} has no {END_OF_TEXT}, which ends documents; give GPT-2's "
                "vocab.json, or one made like it"
            )
        merges = _read_merges(merge_file)
        _require_whole(vocab_file, self.vocab, merge_file, merges)
        library = optional_libraries.load("tokenizers", "GPT2BPETokenizer")
        words = optional_libraries.load("regex", "GPT2BPETokenizer")
        try:
            self._model = library.models.BPE(self.vocab, merges, unk_token=self.inv_vocab.get(0))
        except BaseException as error:
            if not optional_libraries.is_fault(error):
                raise
            raise ValueError(
                f"{vocab_file} and {merge_file} do not belong together ({error}); give both files "
                "of one tokenizer"
            ) from error
        self._find_words = words.compile(_GPT2_PATTERN).findall
        self._known: dict[str, list[int]] = {}
        self._symbol_of = symbols_of_bytes()
        self._byte_of = {symbol: byte for byte, symbol in self._symbol_of.items()}
        self.eod: int = self.vocab[END_OF_TEXT]
        self.eos: int = self.eod
        self.pad: int | None = None

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return len(self.vocab)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = []
        known = self._known
        for word in self._find_words(text):
            found = known.get(word)
            ids += self._merge(word) if found is None else found
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are no text become the replacement character."""
        symbols = "".join(self.inv_vocab[int(number)] for number in ids)
        return bytes(self._byte_of[symbol] for symbol in symbols).decode("utf-8", errors="replace")

    def _merge(self, word: str) -> list[int]:
        """Token ids of one word, remembered: few words make up most of a text."""
        symbols = "".join(self._symbol_of[byte] for byte in word.encode("utf-8"))
        ids = [token.id for token in self._model.tokenize(symbols)]
        if len(self._known) >= _MAX_KNOWN_WORDS:
            self._known.clear()
        self._known[word] = ids
        return ids

    def token_to_id(self, token: str) -> int | None:
        """Id of one entry of the vocabulary; None when there is no such entry."""
        return self.vocab.get(token)


class _Backend(Protocol):
    """What ``HuggingFaceTokenizer`` asks of the library it found."""

    size: int

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def encode_quickly(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...

    def token_to_id(self, token: str) -> int | None: ...

    def special(self, name: str) -> int | None: ...


class HuggingFaceTokenizer:
    """A tokenizer in Hugging Face's format, from a local folder.

    With the ``transformers`` library installed, its ``AutoTokenizer`` is used, as Megatron does;
    otherwise the folder is read as the high-level ``AutoTokenizer`` reads it, to the same ids.

    Args:
        path: folder, or its ``tokenizer.json``.
        trust_remote_code: run Python code that lies in the folder (``transformers`` only).
        use_fast: take the compiled implementation (``transformers`` only).

    Raises:
        ValueError: files are missing or unusable.
        RuntimeError: neither library is installed.
    """

    def __init__(self, path: str, trust_remote_code: bool = False, use_fast: bool = True) -> None:
        self.unique_identifiers: dict[str, object] = {
            "class": "_HuggingFaceTokenizer",
            "tokenizer_path": [path],
        }
        self._backend = _hugging_face_backend(path, trust_remote_code, use_fast)
        self._path = path
        self.eos: int | None = self._backend.special("eos_token")
        self.bos = self._backend.special("bos_token")
        self.pad = self._backend.special("pad_token")

    @property
    def eod(self) -> int:
        """Id that ends a document: that of the eos token.

        Raises:
            ValueError: there is none.
        """
        if self.eos is None:
            raise ValueError(
                f"tokenizer {self._path} names no eos_token, which ends documents; add it to its "
                "tokenizer_config.json"
            )
        return self.eos

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, added tokens included."""
        return self._backend.size

    def tokenize(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens the tokenizer puts around it."""
        return self._backend.encode(text, add_special_tokens)

    def tokenize_quickly(self, text: str) -> list[int]:
        """What ``tokenize`` says, in half the time, for a process that will not fork any more.

        The library does not keep where in the text a token lies, but may start threads, and
        complains about each fork thereafter.
        """
        return self._backend.encode_quickly(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are spelled out."""
        return self._backend.decode([int(number) for number in ids])

    def token_to_id(self, token: str) -> int | None:
        """Id of one entry of the vocabulary; None when there is no such entry."""
        return self._backend.token_to_id(token)


class _OwnBackend:
    """The loader of the high-level room: any form a tokenizer's files have."""

    def __init__(self, path: Path) -> None:
        folder, self._assembly = load(path)
        self._generation, self._path = folder.generation, path
        self._tokenizer = self._assembly.backend
        self._has_quick_call = hasattr(self._tokenizer, "encode_batch_fast")  # from 0.20 on
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._ids(
            lambda: self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        )

    def encode_quickly(self, text: str) -> list[int]:
        if not self._has_quick_call:
            return self.encode(text, True)
        return self._ids(lambda: self._tokenizer.encode_batch_fast([text])[0])

    def _ids(self, encoded: Callable[[], Any]) -> list[int]:
        try:
            return encoded().ids
        except BaseException as error:
            if not optional_libraries.is_fault(error):
                raise
            raise ValueError(f"tokenizer {self._path} cannot encode: {error}") from error

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def special(self, name: str) -> int | None:
        number = self._assembly.token_id(name)
        if number is None:
            number = self._generation.get(f"{name}_id")
        number = number[0] if isinstance(number, list) and number else number
        if number is not None and type(number) is not int:
            raise ValueError(f"tokenizer {self._path} has {number!r:.40} as {name}; give a number")
        return number


class _TransformersBackend:
    """``transformers.AutoTokenizer``."""

    def __init__(self, library: Any, path: str, trust_remote_code: bool, use_fast: bool) -> None:
        try:
            self._tokenizer = library.AutoTokenizer.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                use_fast=use_fast,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} is not a Hugging Face tokenizer ({error}); it needs tokenizer.json and "
                "tokenizer_config.json, or the files of its class"
            ) from error
        self.size = len(self._tokenizer)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=add_special_tokens).input_ids

    def encode_quickly(self, text: str) -> list[int]:
        return self.encode(text, True)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def token_to_id(self, token: str) -> int | None:
        return self._tokenizer.get_vocab().get(token)

    def special(self, name: str) -> int | None:
        return getattr(self._tokenizer, f"{name}_id")


def _hugging_face_backend(path: str, trust_remote_code: bool, use_fast: bool) -> _Backend:
    if not os.path.exists(path):
        raise ValueError(
            f"tokenizer {path} not found; --tokenizer-model needs a local folder with "
            "tokenizer.json and tokenizer_config.json (nothing is downloaded)"
        )
    transformers = optional_libraries.load_if_installed("transformers")
    if transformers is not None and os.path.isdir(path):
        return _TransformersBackend(transformers, path, trust_remote_code, use_fast)
    return _OwnBackend(Path(path))


def _read_vocab(path: str) -> dict[str, int]:
    if not os.path.isfile(path):
        raise ValueError(
            f"vocabulary {path} is not a file; GPT2BPETokenizer needs --vocab-file vocab.json and "
            "--merge-file merges.txt"
        )
    vocab = read_json(Path(path))
    are_numbers = all(type(number) is int for number in vocab.values())
    if not are_numbers or set(vocab.values()) != set(range(len(vocab))):
        raise ValueError(
            f"vocabulary {path} must map its {len(vocab)} tokens to the numbers 0 to "
            f"{len(vocab) - 1}; give GPT-2's vocab.json"
        )
    return vocab


def _require_whole(
    vocab_file: str, vocab: dict[str, int], merge_file: str, merges: list[tuple[str, str]]
) -> None:
    """Name tokens that nothing makes: a file of merges that was cut is a sound one of fewer."""
    made = {first + second for first, second in merges}
    own = (token for token in vocab if len(token) > 1 and not re.fullmatch(r"<.*>", token))
    never = [token for token in own if token not in made]
    if never and not merges:
        raise ValueError(f"{merge_file} holds no merge, {vocab_file} needs some; copy it again")
    if never:
        logger.warning(
            "WARNING: no merge of %s makes %d of the tokens of %s (%r ...); was it cut?",
            merge_file,
            len(never),
            vocab_file,
            never[0],
        )


def _read_merges(path: str) -> list[tuple[str, str]]:
    if not os.path.isfile(path):
        raise ValueError(
            f"merges {path} is not a file; GPT2BPETokenizer needs --vocab-file vocab.json and "
            "--merge-file merges.txt"
        )
    lines = read_text(path).split("\n")
    merges = []
    # The first line tells the version, and the text behind the last line end is no merge.
    for number, line in enumerate(lines[1:-1], start=2):
        parts = line.split()
        if len(parts) != 2:
            raise ValueError(
                f"line {number} of {path} is {line!r}; each line is two parts with a space between"
            )
        merges.append((parts[0], parts[1]))
    return merges
