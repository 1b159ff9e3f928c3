# SPDX-License-Identifier: Apache-2.0
"""Reading and writing YAML: plain numbers only, no key twice, bounded size, errors in one line.

Scalars follow YAML 1.2's core schema without its octal and hexadecimal numbers: ``true`` and
``false`` are the only switches, and what YAML 1.1 reads as something else than it looks (``yes``,
``010``, ``1_000``, ``1:30``, dates) is text, which a field of another type refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mindspeed_ms.files.regular_file import read_text

MOST_BYTES = 2**24
"""More than any configuration file has."""

MOST_NODES = 100_000
"""More keys and values than any configuration has, counted as often as aliases repeat them."""

MOST_LEVELS = 40
"""Blocks inside blocks."""


class _Loader(yaml.SafeLoader):
    """YAML reader that refuses a key written twice, and tags such as ``!!int``."""

    repeated: Callable[[str], None] | None = None
    """Told of a key that is written twice, whose last value counts then."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, f"the tag {event.tag!r} is not accepted", event.start_mark
            )
        self._level += 1
        if self._level > MOST_LEVELS + 1:
            raise yaml.composer.ComposerError(
                None, None, f"it nests blocks more than {MOST_LEVELS} deep", event.start_mark
            )
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        self._level -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:  # noqa: ANN401  (as its parent)
        value = super().construct_scalar(node)
        if isinstance(value, str) and any("\ud800" <= one <= "\udfff" for one in value):
            raise yaml.constructor.ConstructorError(
                None, None, "an escape is half a pair of surrogates", node.start_mark
            )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is not a word", key_node.start_mark
                )
            if key_node.value in seen and self.repeated is not None:
                self.repeated(key_node.value)
            elif key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is written twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """YAML writer that quotes text which this reader, or one of YAML 1.1, takes for a number."""


def _resolve(tag: str, pattern: str, first: str) -> None:
    for side in (_Loader, _Dumper):
        side.add_implicit_resolver(
            f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first)
        )


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", "[-+]?(?:0|[1-9][0-9]{0,39})", "-+0123456789")
_resolve(
    "float",
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+.0123456789",
)
_resolve("null", "~|null|Null|NULL|", "~nN")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_resolve("merge", "<<", "<")


def read_yaml_text(text: str, repeated: Callable[[str], None] | None = None) -> Any:  # noqa: ANN401  (what YAML can hold)
    """Return what a YAML text holds.

    Args:
        text: the YAML.
        repeated: told of keys that are written twice, whose last value counts; None refuses them.

    Raises:
        yaml.YAMLError: it is not YAML, or has too many parts.
    """
    reader = _Loader(text)
    reader.repeated = repeated
    try:
        try:
            node = reader.get_single_node()
        except (ValueError, OverflowError) as error:  # of an escape beyond the last character
            raise yaml.scanner.ScannerError(
                None, None, f"an escape is no character ({error})", reader.get_mark()
            ) from None
        if node is None:
            return None
        _count_parts(node, {})
        return reader.construct_document(node)
    finally:
        reader.dispose()


def read_yaml(path: Path, repeated: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Return the top-level keys of a YAML file.

    Args:
        path: the file.
        repeated: see ``read_yaml_text``.

    Raises:
        ValueError: the file cannot be read, is not YAML, is too large, or holds no keys.

    """
    try:
        document = read_yaml_text(read_text(path, MOST_BYTES), repeated)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; check the path") from error
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path} is not valid YAML: {_one_line(error)}; correct it there"
        ) from error
    if not isinstance(document, Mapping):
        raise ValueError(
            f"{path} holds no keys; a configuration file has sections such as model_config"
        )
    return dict(document)


def yaml_text(data: Mapping[str, Any]) -> str:
    """Return plain data as YAML, which :func:`read_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _count_parts(node: yaml.Node, known: dict[int, int]) -> int:
    """Parts of a node with every reference written out: ten lines may be ten thousand million."""
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.constructor.ConstructorError(
                None, None, "a part is named within itself", node.start_mark
            )
        return known[id(node)]
    known[id(node)] = 0
    count = 1
    if isinstance(node, yaml.SequenceNode):
        count += sum(_count_parts(item, known) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        count += sum(_count_parts(part, known) for pair in node.value for part in pair)
    if count > MOST_NODES:
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"it holds more than {MOST_NODES} values, references written out",
            node.start_mark,
        )
    known[id(node)] = count
    return count


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(problem)
