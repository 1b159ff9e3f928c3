# SPDX-License-Identifier: Apache-2.0
"""Settings from YAML files and words over them; a tree of sections, free of what keys mean.

``parse`` reads ``--config F.yaml --key=value``. A key is looked for in all sections, by its dotted
name or its last part; its value takes the type of the file's. A key that the file does not have is
the user's own and kept as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mindspeed_ms.config.section import suggestion
from mindspeed_ms.config.yaml_reader import read_yaml, read_yaml_text
from mindspeed_ms.files.regular_file import real_path
from mindspeed_ms.training.flags.value_types import decimal, whole

Tree = dict[str, Any]
"""Key -> value, or a further tree."""

BASE_KEY = "base_config"
"""Names the files a file builds on; relative ones lie beside it."""
PRESETS = Path(__file__).with_name("presets")
"""Files that a name alone stands for."""

_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})


# --- trees ----------------------------------------------------------------------------------------


def merge_trees(layers: Iterable[Mapping[str, Any]]) -> Tree:
    """Join trees key by key; a later one wins, an empty value (None) asks for nothing.

    >>> merge_trees([{"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": None}}])
    {'a': {'b': 3, 'c': 2}}
    """
    merged: Tree = {}
    for layer in layers:
        for key, value in layer.items():
            present = merged.get(key)
            if isinstance(value, Mapping):
                below = present if isinstance(present, Mapping) else {}
                merged[key] = merge_trees([below, value])
            elif value is not None or key not in merged:
                merged[key] = value
    return merged


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything that is no further tree.

    >>> list(leaves({"a": {"b": 1}, "c": [2]}))
    [('a.b', 1), ('c', [2])]
    """
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def tree_of(values: Mapping[str, Any]) -> Tree:
    """The tree that dotted names describe.

    >>> tree_of({"a.b": 1, "a.c": 2})
    {'a': {'b': 1, 'c': 2}}

    Raises:
        ValueError: a name is used as a value and as a section.
    """
    tree: Tree = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        below = tree
        for section in sections:
            below = below.setdefault(section, {})
            if not isinstance(below, dict):
                raise ValueError(f"{name} and {section} exclude each other: {section} is a value")
        if isinstance(below.get(last), dict):
            raise ValueError(f"{name} is a section with keys; give one of its keys a value")
        below[last] = value
    return tree


def load_tree(path: Path) -> Tree:
    """Read a YAML file and, below it, the files of its ``base_config``.

    Raises:
        ValueError: a file cannot be read, or they include each other in a circle.
    """
    return merge_trees(load_layers(path))


def load_layers(path: Path) -> tuple[Tree, Tree]:
    """Read a YAML file: the files it builds on, joined, and itself.

    Raises:
        ValueError: see ``load_tree``.
    """
    return _load(path, ())


def _load(path: Path, including: tuple[Path, ...]) -> tuple[Tree, Tree]:
    if real_path(path) in including:
        raise ValueError(f"{path} is its own {BASE_KEY}, directly or through others; remove it")
    tree = read_yaml(path)
    bases = tree.pop(BASE_KEY, None) or []
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: {BASE_KEY} is {bases!r}; it must list files")
    chain = (*including, real_path(path))
    below = [merge_trees(_load(path.parent / base, chain)) for base in bases]
    return merge_trees(below), tree


def find_file(name: str) -> Path:
    """The file a name stands for: a path, or a preset of the project.

    Raises:
        ValueError: neither; lists the presets.
    """
    for path in (Path(name), PRESETS / name, PRESETS / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in PRESETS.glob("*.yaml")))
    raise ValueError(f"there is no file {name}; check the path, or name a preset: {known}")


# --- values from words ----------------------------------------------------------------------------


def parse_bool(text: str) -> bool:
    """Read true, false, yes, no, 1 or 0 in any case.

    Raises:
        ValueError: another word.
    """
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("must be true or false")
    return word in _TRUE


def parse_value(text: str) -> Any:  # noqa: ANN401  (what YAML can hold)
    """Read a value of unknown type as YAML would; ``yes`` and ``no`` stay text, a comma lists.

    >>> parse_value("True"), parse_value("1e-5"), parse_value("[1,2]"), parse_value("a,b")
    (True, 1e-05, [1, 2], ['a', 'b'])
    """
    try:
        value = read_yaml_text(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, bool) and text.strip().lower() not in ("true", "false"):
        return text
    if isinstance(value, str) and "," in text and " " not in text:
        return [parse_value(part) for part in text.split(",")]
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        return text  # a path with a colon
    return value


def cast(text: str, present: object) -> Any:  # noqa: ANN401
    """Read a value of the type of ``present``.

    Raises:
        ValueError: the text is nothing of that type; says what it must be.
    """
    if present is None:
        return parse_value(text)
    if isinstance(present, bool):
        return parse_bool(text)
    if isinstance(present, int):
        return _whole(text)
    if isinstance(present, float):
        try:
            return decimal(text)
        except ValueError:
            raise ValueError("must be a number in plain digits") from None
    if isinstance(present, list):
        value = parse_value(text)
        value = value if isinstance(value, list) else [value]
        if present and len({type(item) for item in present}) == 1 and type(present[0]) is str:
            return [str(item) for item in value]
        return value
    return text


def _whole(text: str) -> int:
    try:
        return whole(text)
    except ValueError:
        pass
    try:
        number = decimal(text)
    except ValueError:
        number = 0.5
    if not number.is_integer() or abs(number) >= 2**63:  # 1e3 is a whole number
        raise ValueError("must be a whole number")
    return int(number)


def split_words(words: Sequence[str]) -> list[tuple[str, str]]:
    """(key, value) of ``--key=value`` and ``--key value``.

    Raises:
        ValueError: a word that is no option, or an option without a value.
    """
    pairs, position = [], 0
    while position < len(words):
        word = words[position]
        found = re.fullmatch(r"--([A-Za-z_][\w.-]*)(?:=(.*))?", word, re.S)
        if found is None:
            raise ValueError(f"{word!r} is no option; write --key=value")
        key, value = found[1].replace("-", "_"), found[2]
        position += 1
        if value is None:
            if position == len(words) or words[position].startswith("--"):
                raise ValueError(f"--{found[1]} needs a value")
            value = words[position]
            position += 1
        pairs.append((key, value))
    return pairs


# --- options --------------------------------------------------------------------------------------


class Section:
    """Keys as attributes. A key further below is found by its own name where only one has it."""

    def __init__(self, values: Mapping[str, Any], name: str = "") -> None:
        self._values = values
        self._name = name

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__") or "_values" not in self.__dict__:  # copies ask before they fill
            raise AttributeError(name)
        values = self._values
        if name in values:
            return self._view(name, values[name])
        below = _with_leaf(values, name)
        if len(below) == 1:
            return dict(leaves(values))[below[0]]
        where = self._name or "the options"
        if below:
            raise AttributeError(f"{where} have {name} as {' and '.join(below)}; name one of them")
        known = [*values, *(path.rpartition(".")[2] for path, _ in leaves(values))]
        raise AttributeError(f"{where} have no {name}{suggestion(name, known)}")

    def __contains__(self, name: object) -> bool:
        names = {*self._values, *(path for path, _ in leaves(self._values))}
        return name in names or (isinstance(name, str) and hasattr(self, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        value: Any = self._values
        for part in name.split("."):
            value = value[part]
        return self._view(name, value)

    def get(self, name: str, default: object = None) -> Any:  # noqa: ANN401
        """The value of a dotted name, or ``default``."""
        try:
            return self[name]
        except (KeyError, TypeError):
            return default

    def to_dict(self) -> Tree:
        """A copy as plain data."""
        return merge_trees([self._values])

    def _view(self, name: str, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return Section(value, f"{self._name}.{name}" if self._name else name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values!r})"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the values come from."""

    file: str
    """The YAML file."""
    overwritten: Mapping[str, Any] = field(default_factory=dict)
    """Dotted name -> value, of keys of the file that the command line gave another value."""
    added: Mapping[str, str] = field(default_factory=dict)
    """Keys of the user's own."""


class Options(Section):
    """All settings of a run: the file's with the words over them, and the user's own."""

    def __init__(self, values: Mapping[str, Any], origin: Origin) -> None:
        super().__init__(values)
        self._origin = origin

    @property
    def origin(self) -> Origin:
        """Where the values come from."""
        return self._origin

    def report(self) -> list[str]:
        """Lines of what was overwritten, added and read: three blocks."""
        origin = self._origin
        given = origin.overwritten.keys() | origin.added.keys()
        rest = {name: value for name, value in leaves(self._values) if name not in given}
        lines = []
        for title, values in (
            ("overwritten by the command line:", origin.overwritten),
            ("added by the user:", origin.added),
            (f"from {origin.file}:", rest),
        ):
            lines += [title, *(f"  {name}: {value}" for name, value in values.items())]
        return lines

    def hints(self) -> list[str]:
        """One line for each of the user's own keys that looks like one of the file's, misspelt."""
        known = [name.rpartition(".")[2] for name, _ in leaves(self._values)]
        own = set(self._origin.added)
        lines = []
        for name in self._origin.added:
            near = suggestion(name, [key for key in known if key not in own])
            if near:
                lines.append(f"--{name} is no key of {self._origin.file}{near}; it was kept")
        return lines


def parse(words: Sequence[str], default_file: str | None = None) -> Options:
    """Read the options of a run.

    Args:
        words: ``--config F.yaml --key=value ...``; ``--config`` may be left out where
            ``--auto_model=NAME`` names a model, whose preset ``NAME_base.yaml`` then serves.
        default_file: the file when there is neither, and for models without a preset.

    Raises:
        ValueError: a word that cannot be understood, an ambiguous key, a value of another type.
    """
    pairs = split_words(words)
    configs = [value for key, value in pairs if key == "config"]
    if len(configs) > 1:
        raise ValueError(f"--config is given {len(configs)} times; keep one")
    name = configs[0] if configs else _preset(dict(pairs).get("auto_model"), default_file)
    values = load_tree(find_file(name))
    overwritten: Tree = {}
    added: dict[str, str] = {}
    for key, text in pairs:
        if key == "config":
            continue
        path = resolve_key(values, key, name)
        if path is None:
            added[key] = text
            continue
        try:
            overwritten[path] = cast(text, dict(leaves(values))[path])
        except ValueError as error:
            present = dict(leaves(values))[path]
            raise ValueError(
                f"--{key} is {text!r}, but {error}: {name} has {path}: {present!r}"
            ) from None
    merged = merge_trees([values, tree_of(overwritten), tree_of(added)])
    return Options(merged, Origin(name, overwritten, added))


def _preset(model: str | None, default_file: str | None) -> str:
    for name in (f"{model}_base.yaml" if model else None, default_file):
        if name is not None and (PRESETS / name).is_file():
            return name
    if default_file is not None:
        return default_file
    raise ValueError("no settings are named; give --config FILE.yaml, or --auto_model=gpt")


def resolve_key(values: Mapping[str, Any], key: str, file: str) -> str | None:
    """Dotted name of the file's key that is meant; None when it has none of that name.

    Raises:
        ValueError: several sections have it, or it is a section.
    """
    if key in dict(leaves(values)):
        return key
    node: Any = values
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    if isinstance(node, Mapping):
        first = next(iter(node), "key")
        raise ValueError(f"--{key} is a section of {file}; name one of its keys: --{key}.{first}=")
    found = _with_leaf(values, key)
    if len(found) > 1:
        raise ValueError(f"--{key} is ambiguous in {file}: write --{' or --'.join(found)}")
    return found[0] if found else None


def _with_leaf(values: Mapping[str, Any], name: str) -> list[str]:
    return [path for path, _ in leaves(values) if path.endswith(f".{name}")]
