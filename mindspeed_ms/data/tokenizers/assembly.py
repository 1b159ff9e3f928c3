# SPDX-License-Identifier: Apache-2.0
"""A tokenizer put together: vocabulary, steps of its class, special tokens.

Source: ``transformers`` 5.24 (order in which tokens are added; results are compared with it).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_ms.data.tokenizers import optional_libraries, pipelines, tiktoken_ranks
from mindspeed_ms.data.tokenizers.byte_level import read_json
from mindspeed_ms.data.tokenizers.gap_tokens import sentinels
from mindspeed_ms.data.tokenizers.pipelines import PIPELINES, Vocabulary
from mindspeed_ms.data.tokenizers.sentencepiece_model import (
    Pieces,
    as_tokenizer,
    merges_by_id,
    read_pieces,
)
from mindspeed_ms.data.tokenizers.tokenizer_folder import (
    EXTRA,
    OLD_EXTRA,
    SPECIAL_NAMES,
    Folder,
    Source,
    open_folder,
    read_from,
)

_MOST_GROWTH = 1000
"""Characters that replacements may make of one."""

Tokenizer = Any
"""A ``tokenizers.Tokenizer``."""

Token = Any
"""A string or a ``tokenizers.AddedToken``."""


@dataclass
class Assembly:
    """A tokenizer and what is known of its special tokens."""

    backend: Tokenizer
    named: dict[str, Token]
    """``bos_token``, ``eos_token``, ... -> token; only those there are."""

    extra: list[Token]
    """Special tokens without such a name."""

    add_bos_token: bool
    add_eos_token: bool
    settings: dict[str, Any]
    """Arguments of the class that are not about tokens or vocabulary."""

    def token_id(self, name: str) -> int | None:
        """Id of a special token by name; None when there is no such token."""
        token = self.named.get(name)
        return None if token is None else self.backend.token_to_id(str(token))

    def put_around(self) -> None:
        """Let texts get the tokens that ``add_bos_token`` and ``add_eos_token`` ask for."""
        self.add_bos_token &= self.named.get("bos_token") is not None
        self.add_eos_token &= self.named.get("eos_token") is not None
        library = optional_libraries.load("tokenizers", "a tokenizer")
        bos = str(self.named.get("bos_token")) if self.add_bos_token else None
        eos = str(self.named.get("eos_token")) if self.add_eos_token else None

        def around(letter: str, kind: int) -> str:
            parts = (bos and f"{bos}:{kind}", f"${letter}:{kind}", eos and f"{eos}:{kind}")
            return " ".join(part for part in parts if part)

        self.backend.post_processor = library.processors.TemplateProcessing(
            single=around("A", 0),
            pair=f"{around('A', 0)} {around('B', 1)}",
            special_tokens=[
                (token, self.backend.token_to_id(token)) for token in (bos, eos) if token
            ],
        )


def load(path: Path, class_name: str | None = None) -> tuple[Folder, Assembly]:
    """Read and put together a tokenizer's folder, or a ``tokenizer.json`` and the files beside it.

    Raises:
        ValueError: a file is missing or is not what it should be.
        RuntimeError: a library is not installed.
    """
    with read_from(path):
        folder = open_folder(path, class_name, {}, reads_beside=True)
        return folder, assemble(folder.class_name, folder.source, folder.settings)


def assemble(class_name: str, source: Source | Tokenizer, settings: Mapping[str, Any]) -> Assembly:
    """Put a tokenizer together.

    Args:
        class_name: one of ``PIPELINES``.
        source: files of the vocabulary, or a ``tokenizers.Tokenizer`` that is complete.
        settings: arguments of the class.

    Raises:
        ValueError: the files do not make such a tokenizer.
        RuntimeError: a library is not installed.
    """
    pipeline = PIPELINES[class_name]
    settings = {**pipeline.tokens, **pipeline.options, **settings}
    added = settings.pop("added_tokens_decoder", None) or {}
    has_flags = "add_bos_token" in settings or "add_eos_token" in settings
    if isinstance(source, Source):
        backend, around, added = _backend(class_name, source, settings, added)
        backend.post_processor = around or backend.post_processor
    else:
        backend = source
    if class_name == "T5Tokenizer":
        _add_sentinels(settings)
    _take_padding(backend, settings)
    assembly = _with_special_tokens(backend, settings)
    _add_tokens(assembly, added)
    if pipeline.adds_special_again:
        _add_special_again(assembly)
    if has_flags or backend.post_processor is None or pipeline.rebuilds_around:
        assembly.put_around()
    _put_fixed_around(assembly, pipeline.around)
    return assembly


# ---- the backend from its files ----


def _backend(
    class_name: str, source: Source, settings: dict[str, Any], added: dict[int, Token]
) -> tuple[Tokenizer, Any, dict[int, Token]]:
    """Tokenizer, what goes around texts if a file says so, and the tokens to add."""
    if source.tokenizer_json is not None:
        tokenizer, around = _from_tokenizer_json(class_name, source.tokenizer_json, settings)
        return tokenizer, around, added
    path = source.vocab
    if path is None:
        raise ValueError(
            f"{class_name} needs a vocabulary: give vocab_file (and merges_file) or "
            "tokenizer_file, or use from_pretrained with a folder"
        )
    if not path.is_file():
        raise ValueError(f"vocabulary {path} of {class_name} is not a file")
    if path.suffix == ".json":
        return _from_vocab_json(class_name, path, source.merges, settings), None, added
    if path.suffix == ".txt":
        words = path.read_text(encoding="utf-8").splitlines()
        vocabulary = Vocabulary({word: number for number, word in enumerate(words)}, [])
        return pipelines.build(class_name, vocabulary, settings), None, added
    is_tiktoken = path.suffix == ".tiktoken" or path.name == "tiktoken.model"
    pieces = None if is_tiktoken else read_pieces(path)
    if pieces is None:
        return _from_tiktoken(class_name, path, settings, added), None, added
    tokenizer = _from_pieces(class_name, pieces, settings, added)
    if PIPELINES[class_name].build is None and pieces.adds_dummy_prefix:
        # Found in the text as it is, so that each stretch between them gets its own space.
        make = optional_libraries.load("tokenizers", class_name).AddedToken
        added = {
            number: make(**{**token.__getstate__(), "normalized": False})
            for number, token in added.items()
        }
    return tokenizer, None, added


def _from_tokenizer_json(
    class_name: str, path: Path, settings: dict[str, Any]
) -> tuple[Tokenizer, Any]:
    library = optional_libraries.load("tokenizers", class_name)
    is_generic = PIPELINES[class_name].build is None
    content = read_json(path)
    _refuse_growth(content, path)
    model = content.get("model") or {}
    try:
        if is_generic or model.get("type") not in ("BPE", "WordPiece"):
            complete = library.Tokenizer.from_file(str(path))
        else:
            # Only the steps around the vocabulary are wanted, which is by far the larger part.
            empty = {**model, "vocab": {}} | ({"merges": []} if "merges" in model else {})
            complete = library.Tokenizer.from_str(
                json.dumps(content | {"model": empty, "added_tokens": []})
            )
    except BaseException as error:
        if not optional_libraries.is_fault(error):
            raise
        raise ValueError(
            f"{path} is not a tokenizer file ({optional_libraries.one_line(error)}); copy it again"
        ) from error
    if is_generic:
        return complete, None
    tokenizer = pipelines.build(class_name, _vocabulary_of(content), settings)
    if complete.truncation is not None:
        tokenizer.enable_truncation(**complete.truncation)
    if complete.padding is not None:
        tokenizer.enable_padding(**complete.padding)
    return tokenizer, complete.post_processor


def _refuse_growth(content: Mapping[str, Any], path: Path) -> None:
    """Refuse replacements of which each makes longer what the one before has made.

    The library would take memory until the system ends the process.

    Raises:
        ValueError: a letter may become too many.
    """
    growth, left = 1, [content.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    while left:
        step = left.pop()
        if isinstance(step, list):
            left += step
        if not isinstance(step, dict):
            continue
        left += [value for value in step.values() if isinstance(value, list | dict)]
        if step.get("type") == "Replace":
            pattern = step.get("pattern")
            literal = pattern.get("String") if isinstance(pattern, dict) else None
            size = len(literal) if isinstance(literal, str) else 1
            growth *= -(-len(str(step.get("content"))) // max(1, size)) or 1
        if growth > _MOST_GROWTH:
            raise ValueError(
                f"{path} replaces text by longer text again and again, so that one character may "
                f"become more than {_MOST_GROWTH}; copy the tokenizer again"
            )


def _vocabulary_of(content: dict[str, Any]) -> Vocabulary:
    """The vocabulary in the content of a ``tokenizer.json``."""
    model = content["model"]
    entries = model["vocab"]
    if isinstance(entries, list):
        entries = [(text, score) for text, score in entries]
    merges = [
        tuple(merge.split(" ") if isinstance(merge, str) else merge)
        for merge in model.get("merges") or []
    ]
    normalizer = content.get("normalizer") or {}
    for step in normalizer.get("normalizers", [normalizer]):
        if step.get("type") == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
            return Vocabulary(entries, merges, charsmap)
    return Vocabulary(entries, merges)


def _from_vocab_json(
    class_name: str, vocab: Path, merges: Path | None, settings: dict[str, Any]
) -> Tokenizer:
    if merges is None or not merges.is_file():
        raise ValueError(
            f"merges {merges} of {class_name} is not a file; {vocab} needs the merges.txt that "
            "belongs to it"
        )
    library = optional_libraries.load("tokenizers", class_name)
    try:
        entries, pairs = library.models.BPE.read_file(str(vocab), str(merges))
    except BaseException as error:
        if not optional_libraries.is_fault(error):
            raise
        raise ValueError(
            f"{vocab} and {merges} are not a vocabulary and its merges "
            f"({optional_libraries.one_line(error)}); give both files of one tokenizer"
        ) from error
    return pipelines.build(class_name, Vocabulary(entries, pairs), settings)


def _from_pieces(
    class_name: str, pieces: Pieces, settings: dict[str, Any], added: dict[int, Token]
) -> Tokenizer:
    """A SentencePiece model; its control and user-defined pieces become special tokens."""
    library = optional_libraries.load("tokenizers", class_name)
    is_generic = PIPELINES[class_name].build is None
    settings[OLD_EXTRA] = [
        library.AddedToken(text, normalized=False, special=is_control)
        for text, is_control in pieces.added()
        if is_control or not is_generic
    ]
    if is_generic:
        names = {} if pieces.is_unigram else {n: str(token) for n, token in added.items()}
        settings |= {**pieces.named, **settings}
        return as_tokenizer(pieces, names, settings.get("legacy", True))
    if class_name == "T5Tokenizer":
        gaps = reversed(sentinels(settings["extra_ids"]))
        entries = [*pieces.pieces, *((text, 0.0) for text in gaps)]
        return pipelines.build(class_name, Vocabulary(entries, [], pieces.charsmap), settings)
    vocab = pieces.vocab()
    return pipelines.build(class_name, Vocabulary(vocab, merges_by_id(vocab)), settings)


def _from_tiktoken(
    class_name: str, path: Path, settings: dict[str, Any], added: dict[int, Token]
) -> Tokenizer:
    ranks = tiktoken_ranks.read_ranks(path)
    if not ranks:
        raise ValueError(f"vocabulary {path} is empty; copy the file again")
    vocabulary = Vocabulary(*tiktoken_ranks.vocabulary(ranks))
    if path.suffix == ".tiktoken" and PIPELINES[class_name].build is not None:
        # The first Qwen's file; its class cuts texts as the later ones do.
        return pipelines.build(class_name, vocabulary, settings)
    library = optional_libraries.load("tokenizers", class_name)
    tokenizer = pipelines.tiktoken_bpe(library, vocabulary)
    # Added tokens keep their ids; numbers between them that no token has are filled.
    highest = max(added, default=-1)
    texts = [
        str(added.get(number, f"<|reserved_token_{number}|>"))
        for number in range(len(ranks), highest + 1)
    ]
    extra = settings.get(EXTRA) or []
    texts += [str(token) for token in extra if str(token) not in set(texts)]
    tokenizer.add_special_tokens(
        [library.AddedToken(text, normalized=False, special=True) for text in texts]
    )
    return tokenizer


def _add_sentinels(settings: dict[str, Any]) -> None:
    """The sentinels are special tokens; a list that names some names all."""
    others = settings.get(OLD_EXTRA) or []
    if not any("<extra_id_" in str(token) for token in others):
        settings[OLD_EXTRA] = [*others, *sentinels(settings["extra_ids"])]


# ---- special tokens ----


def _take_padding(backend: Tokenizer, settings: dict[str, Any]) -> None:
    """Truncation and padding that a ``tokenizer.json`` prescribes become the defaults."""
    if backend.truncation is not None:
        settings.setdefault("truncation_side", backend.truncation["direction"])
    if backend.padding is not None:
        settings.setdefault("pad_token", backend.padding["pad_token"])
        settings.setdefault("padding_side", backend.padding["direction"])


def _with_special_tokens(backend: Tokenizer, settings: dict[str, Any]) -> Assembly:
    """Sort the settings into special tokens and the rest."""
    named = {}
    for name in SPECIAL_NAMES:
        token = settings.pop(name, None)
        if token is not None:
            named[name] = _checked(name, token)
    older = settings.pop(OLD_EXTRA, None)
    extra = settings.pop(EXTRA, older) or []
    own = settings.pop("model_specific_special_tokens", None) or {}
    if isinstance(extra, dict):
        own, extra = own | extra, []
    if not isinstance(extra, list | tuple):
        raise ValueError(f"{EXTRA} is {extra!r:.60}; give a list of tokens")
    for name in [name for name in settings if name.endswith("_token")]:
        if not isinstance(settings[name], (bool, type(None))):
            own[name] = settings.pop(name)
    named |= {name: _checked(name, token) for name, token in own.items()}
    return Assembly(
        backend=backend,
        named=named,
        extra=[_checked(EXTRA, token) for token in extra],
        add_bos_token=bool(settings.pop("add_bos_token", False)),
        add_eos_token=bool(settings.pop("add_eos_token", False)),
        settings=settings,
    )


def _checked(name: str, token: Any) -> Token:
    added_token = optional_libraries.load("tokenizers", "a tokenizer").AddedToken
    if not isinstance(token, (str, added_token)):
        raise ValueError(f"{name} is {token!r}; a special token is a string or an AddedToken")
    return token


def _add_tokens(assembly: Assembly, added: dict[int, Token]) -> None:
    """Add the tokens of the folder by number, then the special ones that are still missing."""
    backend = assembly.backend
    added_token = optional_libraries.load("tokenizers", "a tokenizer").AddedToken
    tokens = [added[number] for number in sorted(added)]
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    present |= set(map(str, tokens))
    for token in (*assembly.named.values(), *assembly.extra):
        # One text with other properties is another token; the library keeps the last one.
        if str(token) not in present and token not in tokens:
            tokens.append(token)
    names = set(map(str, assembly.named.values()))
    for place, token in enumerate(tokens):
        if isinstance(token, str):
            tokens[place] = added_token(token, special=True)
        elif not token.special and str(token) in names:
            token.special = True
    if tokens:
        backend.add_tokens(tokens)


def _add_special_again(assembly: Assembly) -> None:
    """Named tokens become special even where the folder describes them otherwise."""
    added_token = optional_libraries.load("tokenizers", "a tokenizer").AddedToken
    tokens = (*assembly.named.values(), *assembly.extra)
    assembly.backend.add_tokens([added_token(str(token), special=True) for token in tokens])


def _put_fixed_around(assembly: Assembly, kind: str) -> None:
    """Special tokens around a text that no setting changes."""
    processors = optional_libraries.load("tokenizers", "a tokenizer").processors
    named, backend = assembly.named, assembly.backend

    def pair(name: str) -> tuple[str, int]:
        return str(named[name]), assembly.token_id(name) or 0

    if kind == "eos":
        eos = "</s>"
        backend.post_processor = processors.TemplateProcessing(
            single=["$A", eos],
            pair=["$A", eos, "$B", eos],
            special_tokens=[(eos, pair("eos_token")[1])],
        )
    elif kind == "cls and sep":
        cls, sep = pair("cls_token"), pair("sep_token")
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls[0]}:0 $A:0 {sep[0]}:0",
            pair=f"{cls[0]}:0 $A:0 {sep[0]}:0 $B:1 {sep[0]}:1",
            special_tokens=[cls, sep],
        )
    elif kind == "roberta":
        settings = assembly.settings
        backend.post_processor = processors.RobertaProcessing(
            pair("sep_token"),
            pair("cls_token"),
            settings["trim_offsets"],
            settings["add_prefix_space"],
        )
