# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer's folder says: its class, its settings, where the vocabulary lies.

Read are ``tokenizer_config.json``, and where it has no ``added_tokens_decoder`` the older
``special_tokens_map.json`` and ``added_tokens.json``; ``config.json`` (model type);
``generation_config.json`` (pad token of last resort); chat templates in all their places.

Source: ``transformers`` 5.24 (which file wins; results are compared with it).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_ms.config.section import suggestion
from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.data.tokenizers.byte_level import MAX_BYTES, read_json
from mindspeed_ms.data.tokenizers.pipelines import GENERIC, PIPELINES
from mindspeed_ms.files.regular_file import read_text

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Special tokens that every tokenizer may have, in the order they are listed in."""

EXTRA, OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
"""Lists of special tokens without a name of their own; the second is the older word."""

WANTED = ("tokenizer.json", "*.model", "*.tiktoken", "vocab.json", "vocab.txt")
"""Files of which one must be there."""

_PROPERTIES = {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}
_MISTRAL = {"mistral", "mistral3", "mixtral", "ministral", "ministral3", "voxtral", "pixtral"}
_WRONGLY_DECLARED = {
    "arctic",
    "ernie4_5",
    "ernie4_5_moe",
    "hyperclovax",
    "internlm2",
    "internlm3",
    "jamba",
    "minicpm3",
    "minimax_m2",
    "nemotron",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
}
"""Model types many of whose folders name a class that does not fit the model."""

_CLASSES_OF_MODELS = {
    "GPT2Tokenizer": "gpt2 gpt_neo gptj opt phi starcoder2 codegen dbrx jais2",
    "GPTNeoXTokenizer": "gpt_neox mpt olmo olmoe rwkv mamba mamba2 falcon_mamba xlstm",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma",
    "CohereTokenizer": "cohere cohere2",
    "PanguAlphaTokenizer": "pangualpha",
    "T5Tokenizer": "t5 mt5 switch_transformers",
    "BertTokenizer": "bert distilbert electra megatron-bert ernie nomic_bert",
    "RobertaTokenizer": "roberta bart longformer",
    GENERIC: "glm glm4 glm4_moe glm4_moe_lite granite granitemoe granitemoehybrid "
    "granitemoeshared gpt_bigcode stablelm persimmon olmo2 olmo3 olmo_hybrid kimi_linear umt5",
}
_CLASS_OF = dict.fromkeys((*_MISTRAL, *_WRONGLY_DECLARED), GENERIC) | {
    model: name for name, models in _CLASSES_OF_MODELS.items() for model in models.split()
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files of a vocabulary."""

    tokenizer_json: Path | None = None
    vocab: Path | None = None
    merges: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A tokenizer as its folder describes it."""

    class_name: str
    """One of ``PIPELINES``."""

    declared: str | None
    """Class that the folder names, which may be none of ``PIPELINES``."""

    source: Source
    settings: dict[str, Any]
    """Arguments of the class; tokens are strings or ``tokenizers.AddedToken``."""

    generation: Mapping[str, Any]
    """``generation_config.json``."""


def class_for(declared: str | None, model_type: str | None, is_byte_level: bool) -> str | None:
    """The class that opens a folder; None when nothing names one.

    Args:
        declared: ``tokenizer_class`` of the folder.
        model_type: of its ``config.json``.
        is_byte_level: its ``tokenizer.json`` works on bytes, as Llama 3's does under the name of
            Llama 2's class.
    """
    declared = declared and declared.removesuffix("Fast")
    of_model = _CLASS_OF.get(model_type or "")
    if declared is None:
        return of_model
    wrongly = model_type in _WRONGLY_DECLARED
    if declared == "LlamaTokenizer" and is_byte_level and not wrongly | (model_type in _MISTRAL):
        return GENERIC
    if of_model == GENERIC:
        return GENERIC
    name = of_model if of_model is not None and wrongly else declared
    return name if name in PIPELINES else GENERIC


@dataclass(frozen=True)
class _Files:
    """A folder, or a single file, which stands for itself: those beside it are not read."""

    path: Path
    folder: Path | None
    """None for a single file."""

    config: dict[str, Any]
    """``tokenizer_config.json``."""

    model: dict[str, Any]
    """``config.json``."""

    tokenizer_json: Path | None

    @property
    def declared(self) -> str | None:
        return self.config.get("tokenizer_class") or self.model.get("tokenizer_class")

    def class_name(self, model_type: str | None = None) -> str:
        """The class that opens the files."""
        declared = (self.declared or "").removesuffix("Fast")
        is_byte_level = (
            declared == "LlamaTokenizer"
            and self.tokenizer_json is not None
            and '"ByteLevel"' in read_text(self.tokenizer_json, MAX_BYTES)
        )
        model_type = model_type or self.model.get("model_type")
        return class_for(self.declared, model_type, is_byte_level) or self._class_of_names()

    def _class_of_names(self) -> str:
        if self.tokenizer_json is None and self.folder is not None:
            if (self.folder / "vocab.json").is_file() and (self.folder / "merges.txt").is_file():
                return "GPT2Tokenizer"
            if (self.folder / "vocab.txt").is_file():
                return "BertTokenizer"
        return GENERIC


def _files(path: Path, reads_beside: bool = False) -> _Files:
    is_file = path.is_file()
    file = path if is_file else path / "tokenizer.json"
    tokenizer_json = file if os.path.lexists(file) and file.suffix == ".json" else None
    if is_file and not reads_beside:
        return _Files(path, None, {}, {}, tokenizer_json)
    folder = path.parent if is_file else path
    config, model = _read(folder, "tokenizer_config.json"), _read(folder, "config.json")
    return _Files(path, folder, config, model, tokenizer_json)


@contextmanager
def read_from(path: Path) -> Iterator[None]:
    """Name the files if what they hold is of other types, or less, than it has to be.

    Raises:
        ValueError: that was so.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"the files of the tokenizer {path} do not hold what they should "
            f"({type(error).__name__}: {text}); copy them again"
        ) from error


def class_of_folder(
    path: Path, model_type: str | None = None, tokenizer_type: str | None = None
) -> tuple[str, str | None]:
    """The class that opens a folder or file, and the one that the folder names.

    Args:
        path: the folder or file.
        model_type: goes before the one in ``config.json``.
        tokenizer_type: a class or a model type to open it with, whatever the folder says.

    Raises:
        ValueError: an unknown ``tokenizer_type``.
    """
    if tokenizer_type is None:
        with read_from(path):
            files = _files(path)
            return files.class_name(model_type), files.declared
    name = _CLASS_OF.get(tokenizer_type, tokenizer_type).removesuffix("Fast")
    if name not in PIPELINES and name != GENERIC.removesuffix("Fast"):
        known = (*PIPELINES, *_CLASS_OF)
        near = suggestion(tokenizer_type, known) or f"; use one of {', '.join(known)}"
        raise ValueError(f"tokenizer_type {tokenizer_type!r} is unknown{near}")
    return name if name in PIPELINES else GENERIC, None


def open_folder(
    path: Path, class_name: str | None, given: Mapping[str, Any], reads_beside: bool = False
) -> Folder:
    """Read a folder, or a single ``tokenizer.json`` or ``.model`` file.

    Args:
        path: the folder or file.
        class_name: class to open it with; None: the one the folder is for.
        given: arguments that go before the folder's own.
        reads_beside: a single file's settings are those that lie beside it.

    Raises:
        ValueError: a file is missing or is not what it should be.
        RuntimeError: a library is not installed.
    """
    files = _files(path, reads_beside)
    name = class_name or files.class_name()
    ignored = {"tokenizer_class", "init_inputs"}
    if files.tokenizer_json is not None:
        # What goes around a text is in tokenizer.json; these are for the other files.
        ignored |= {"add_bos_token", "add_eos_token"}
    config = {key: value for key, value in files.config.items() if key not in ignored}
    if files.folder is not None:
        templates = _chat_templates(files.folder, config.get("chat_template"))
        config |= {} if templates is None else {"chat_template": templates}
    return Folder(
        class_name=name,
        declared=files.declared,
        source=_source(path, name, files.tokenizer_json),
        settings=_with_tokens(_merge(config, given), given, files),
        generation=_read(files.folder, "generation_config.json") if files.folder else {},
    )


def _read(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if os.path.lexists(folder / name) else {}


def _source(path: Path, name: str, tokenizer_json: Path | None) -> Source:
    """Where the vocabulary of a class lies."""
    if tokenizer_json is not None:
        return Source(tokenizer_json=tokenizer_json)
    if path.is_file():
        return Source(vocab=path)
    pipeline = PIPELINES[name]
    models = [path / "tokenizer.model", path / "tiktoken.model", path / pipeline.vocab_file]
    models += sorted([*path.glob("*.model"), *path.glob("*.tiktoken")])
    found = next((file for file in models if file.is_file()), None)
    merges = None if pipeline.merges_file is None else path / pipeline.merges_file
    if found is None:
        other = " and ".join(filter(None, (pipeline.vocab_file, pipeline.merges_file)))
        raise ValueError(
            f"{path} has no tokenizer.json"
            f"{'' if other == 'tokenizer.json' else f', and no {other} either'}, so there is no "
            f"vocabulary for {name}; copy the tokenizer's files there"
        )
    if found.suffix == ".json" and merges is not None and not merges.is_file():
        raise ValueError(f"{found} needs {merges} beside it; copy it there")
    return Source(vocab=found, merges=merges if found.suffix == ".json" else None)


def _chat_templates(folder: Path, in_config: Any) -> str | dict[str, str] | None:
    """Templates of the folder; files of their own go before ``tokenizer_config.json``."""
    found: dict[str, str] = {}
    main = folder / "chat_template.jinja"
    if os.path.lexists(main):
        found["default"] = read_text(main)
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[file.stem] = read_text(file)
    if not found and in_config is None:
        return _read(folder, "chat_template.json").get("chat_template")
    return found["default"] if list(found) == ["default"] else found or None


def _merge(config: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    settings = config | dict(given)
    if OLD_EXTRA in settings and not settings.get(EXTRA):
        settings[EXTRA] = settings.pop(OLD_EXTRA)
    return settings


def _with_tokens(
    settings: dict[str, Any], given: Mapping[str, Any], files: _Files
) -> dict[str, Any]:
    """Settings in which tokens are objects with all their properties."""
    added_token = optional_libraries.load("tokenizers", "a tokenizer's folder").AddedToken
    if "added_tokens_decoder" in settings:
        added = _numbered(settings["added_tokens_decoder"])
    else:
        folder = files.folder
        if folder is not None:
            _add_special_tokens_map(settings, given, _read(folder, "special_tokens_map.json"))
        added = {}
        special = {str(as_token(settings[name])) for name in SPECIAL_NAMES if settings.get(name)}
        special |= set(map(str, map(as_token, _listed(settings.get(EXTRA)))))
        older = {} if folder is None else _read(folder, "added_tokens.json")
        for text, number in older.items():
            is_special = text in special
            added[number] = added_token(text, special=is_special, normalized=not is_special)
        if files.tokenizer_json is not None:
            for token in read_json(files.tokenizer_json).get("added_tokens", []):
                added[token["id"]] = as_token(token)
    by_text = {str(token): token for token in added.values()}
    settings = {name: _converted(value) for name, value in settings.items()}
    if isinstance(settings.get(EXTRA), dict):
        own = settings.pop(EXTRA)
        settings["model_specific_special_tokens"] = (
            settings.get("model_specific_special_tokens", {}) | own
        )
    for name in SPECIAL_NAMES:
        if settings.get(name) is not None:
            settings[name] = by_text.get(str(settings[name]), settings[name])
    settings["added_tokens_decoder"] = added
    return settings


def _numbered(described: Any) -> dict[int, Any]:
    """Tokens of ``added_tokens_decoder`` by their ids."""
    try:
        return {int(number): as_token(token) for number, token in described.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"added_tokens_decoder is {described!r:.60}; it maps ids to descriptions of tokens"
        ) from error


def _listed(extra: Any) -> list[Any]:
    """Tokens of a list; the names of a dictionary are no part of it."""
    return list(extra) if isinstance(extra, list | tuple) else []


def as_token(value: Any) -> Any:
    """A token as an object when it is described by an object of JSON; else as it is."""
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("content"), str):
        raise ValueError(f"a token is described as {value!r:.80}, without its content")
    library = optional_libraries.load("tokenizers", "a tokenizer's folder")
    return library.AddedToken(**{name: value[name] for name in _PROPERTIES & value.keys()})


def _converted(value: Any) -> Any:
    if isinstance(value, dict):
        if "content" in value and value.keys() <= {*_PROPERTIES, "__type", "id"}:
            return as_token(value)
        return {name: _converted(inner) for name, inner in value.items()}
    return [_converted(inner) for inner in value] if isinstance(value, list) else value


def _add_special_tokens_map(
    settings: dict[str, Any], given: Mapping[str, Any], special: Mapping[str, Any]
) -> None:
    for name, value in special.items():
        if given.get(name):
            continue
        if isinstance(value, list):
            value = [_special(token) for token in value]
            if name == EXTRA:
                present = list(map(as_token, settings.get(name) or []))
                value = present + [token for token in value if token not in present]
        settings[name] = value if name == EXTRA else _special(value)


def _special(value: Any) -> Any:
    return as_token(value | {"special": True}) if isinstance(value, dict) else value
