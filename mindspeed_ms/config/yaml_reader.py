"""Reading and writing YAML: plain numbers only, no key twice, bounded size, errors in one line.

Scalars follow YAML 1.2's core schema without its octal and hexadecimal numbers: ``true`` and
``false`` are the only switches, and what YAML 1.1 reads as something else than it looks (``yes``,
``010``, ``1_000``, ``1:30``, dates) is text, which a field of another type refuses.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 2**24
"""More than any configuration file has."""

MOST_NODES = 100_000
"""More keys and values than any configuration has, counted as often as aliases repeat them."""

MOST_LEVELS = 40
"""Blocks inside blocks."""


class _Loader(yaml.SafeLoader):
    """YAML reader that refuses a key written twice, and tags such as ``!!int``."""

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
            raise RecursionError
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        self._level -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is not a word", key_node.start_mark
                )
            if key_node.value in seen:
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


def read_yaml_text(text: str) -> Any:  # noqa: ANN401  (what YAML can hold)
    """Return what a YAML text holds.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the top-level keys of a YAML file.

    Raises:
        ValueError: the file cannot be read, is not YAML, is too large, or holds no keys.

    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(
                f"{path} has {size} bytes, too many for a configuration file; check the name"
            )
        document = read_yaml_text(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file; give a YAML file") from error
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path} is not valid YAML: {_one_line(error)}; correct it there"
        ) from error
    except RecursionError:
        raise _too_deep(path) from None
    if not isinstance(document, Mapping):
        raise ValueError(
            f"{path} holds no keys; a configuration file has sections such as model_config"
        )
    _check_size(path, document)
    return dict(document)


def yaml_text(data: Mapping[str, Any]) -> str:
    """Return plain data as YAML, which :func:`read_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _too_deep(path: Path) -> ValueError:
    return ValueError(f"{path} nests blocks more than {MOST_LEVELS} deep; write them flat")


def _check_size(path: Path, document: Mapping[str, Any]) -> None:
    """Refuse what would take long to walk: aliases may repeat a small text without end."""
    pending: list[tuple[Any, int]] = [(document, 0)]
    count = 0
    while pending:
        node, level = pending.pop()
        count += 1
        if level > MOST_LEVELS:
            raise _too_deep(path)
        if count > MOST_NODES:
            raise ValueError(
                f"{path} holds more than {MOST_NODES} values; a configuration has far fewer"
            )
        pending.extend((inner, level + 1) for inner in _inner(node))


def _inner(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        yield from node.values()
    elif isinstance(node, list | tuple | set):
        yield from node


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else str(problem)
