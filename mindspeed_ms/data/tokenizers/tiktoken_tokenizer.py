# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of OpenAI's ``tiktoken``, with Megatron's special tokens in front.

Source: Megatron-LM core 0.12 ``data/tokenizers/tokenizer.py`` (behaviour, patterns).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.files.regular_file import read_text

_MAX_BYTES = 1 << 30
DEFAULT_VOCAB_SIZE = 2**17
REQUIRED_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")

# Which characters may become one token; part of the format of the data these vocabularies made.
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
PATTERNS = {
    "v1": (r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"),
    "v2": (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


class TikTokenizer:
    """Byte-level BPE by ``tiktoken``; ids below ``num_special_tokens`` are special.

    Args:
        path: JSON list of ``{"rank", "token_bytes" (base64), "token_str"}``, ranks 0, 1, 2, ...
        pattern: v1 or v2.
        vocab_size: ids in all. None: 131072.
        num_special_tokens: ids reserved for special tokens; unnamed ones are ``<SPECIAL_n>``.
        special_tokens: names of the first of them. None: ``<unk>``, ``<s>``, ``</s>``.

    Raises:
        ValueError: a missing or malformed file, or numbers that do not fit each other.
        RuntimeError: ``tiktoken`` is not installed.
    """

    def __init__(
        self,
        path: str,
        pattern: str,
        *,
        vocab_size: int | None = None,
        num_special_tokens: int = 1000,
        special_tokens: Sequence[str] | None = None,
    ) -> None:
        if pattern not in PATTERNS:
            raise ValueError(
                f"tiktoken pattern {pattern!r} is unknown; set --tiktoken-pattern to v1 or v2"
            )
        self.unique_identifiers: dict[str, object] = {
            "class": "CustomTikTokenizer",
            "tokenizer_path": [path],
            "pattern": PATTERNS[pattern],
            "vocab_size": str(vocab_size),
            "num_special_tokens": str(num_special_tokens),
            "special_tokens": str(None if special_tokens is None else list(special_tokens)),
        }
        self._vocab_size = DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size
        names = _special_names(special_tokens, num_special_tokens, self._vocab_size)
        special = {name: number for number, name in enumerate(names)}
        ranks = _read_ranks(path, self._vocab_size - num_special_tokens)
        library = optional_libraries.load("tiktoken", "TikTokenizer")
        self._model = library.Encoding(
            name=Path(path).parent.name,
            pat_str=PATTERNS[pattern],
            mergeable_ranks={token: rank + num_special_tokens for token, rank in ranks.items()},
            special_tokens=special,
        )
        self._special = special
        self.bos: int = special["<s>"]
        self.eos: int = special["</s>"]
        self.eod: int = self.eos
        self.unk: int = special["<unk>"]
        self.pad: int | None = None

    @property
    def vocab_size(self) -> int:
        """Special tokens and the others."""
        return self._vocab_size

    def tokenize(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of a text; special tokens spelled out in it are text like any other."""
        return [self.bos] * bos + self._model.encode_ordinary(text) + [self.eos] * eos

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self._model.decode([int(number) for number in ids])

    def token_to_id(self, token: str) -> int | None:
        """Id of one entry of the vocabulary; None when there is no such entry."""
        if token in self._special:
            return self._special[token]
        try:
            return self._model.encode_single_token(token)
        except KeyError:
            return None


def _special_names(names: Sequence[str] | None, count: int, vocab_size: int) -> list[str]:
    given = list(REQUIRED_SPECIAL_TOKENS if names is None else names)
    missing = set(REQUIRED_SPECIAL_TOKENS) - set(given)
    if missing or len(set(given)) < len(given):
        raise ValueError(
            f"special tokens {given} must be unique and include "
            f"{', '.join(REQUIRED_SPECIAL_TOKENS)}; correct --tiktoken-special-tokens"
        )
    if not len(given) <= count < vocab_size:
        raise ValueError(
            f"tiktoken_num_special_tokens ({count}) must be at least {len(given)}, the special "
            f"tokens named, and below vocab_size ({vocab_size})"
        )
    names_all = given + [f"<SPECIAL_{number}>" for number in range(len(given), count)]
    if len(set(names_all)) < count:
        raise ValueError(
            f"special tokens {given} use a name of the form <SPECIAL_n> that an unnamed one has; "
            "rename it"
        )
    return names_all


def _read_ranks(path: str, count: int) -> dict[bytes, int]:
    """The first ``count`` tokens of the vocabulary."""
    if not Path(path).is_file():
        raise ValueError(
            f"tokenizer model {path} is not a file; TikTokenizer needs the .json file of its "
            "vocabulary (a list of rank, token_bytes, token_str)"
        )
    try:
        entries = json.loads(read_text(path, _MAX_BYTES))[:count]
        ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}
        are_sound = all(type(rank) is int for rank in ranks.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a tiktoken vocabulary ({type(error).__name__}: {error}); it must be a "
            "JSON list of objects with rank, token_bytes and token_str"
        ) from error
    if not are_sound or sorted(ranks.values()) != list(range(count)):
        raise ValueError(
            f"{path} has {len(ranks)} tokens with different bytes, {count} with ranks 0 to "
            f"{count - 1} are needed; lower --vocab-size to fit, or copy the file again"
        )
    return ranks
