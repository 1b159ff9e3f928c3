# SPDX-License-Identifier: Apache-2.0
"""YAML files from which other launchers make a command line.

Two layouts are read. ``MODEL_ARGS`` holds flags as keys, with variables of the shell in values:
Megatron-LM's functional tests and Megatron-MoE-ModelZoo. Blocks ``system``, ``model`` and ``data``
hold arguments at any depth: FlagScale's training files, alone or named by the ``defaults`` of an
experiment's file. Both become words for the parser of flags, so every flag means what it means on
a command line.

Source: ``run_ci_test.sh`` of Megatron-LM, ``flatten_dict_to_args`` of FlagScale (behaviour).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import env
from mindspeed_ms.config.all_config import SECTION_CLASSES
from mindspeed_ms.training.flags import BY_NAME, NoEffect
from mindspeed_ms.training.yaml_styles.yaml_files import find_yaml, read_yaml

logger = logging.getLogger(__name__)

_FILE_FLAGS = ("--yaml", "--yaml-cfg", "--yaml_cfg")
_FLAGS_KEY = "MODEL_ARGS"
_BLOCKS = ("system", "model", "data")
_VARIABLE = re.compile(r"\$\{([^${}:]+)(?::-?([^{}]*))?\}")
_ESCAPED = re.compile(r"\\+(?=[|()*\s])")
"""Backslashes for a shell that reads such a value once or twice more."""
_UNSET = re.compile(r"\$\{[^{}]*\}")

Lookup = Callable[[str], Any]
"""Name of a variable -> its value, None if it has none."""


def with_files_said(words: Sequence[str], is_plan: bool) -> list[str]:
    """Return a command line with such a file replaced by its words, in front: later ones win.

    Args:
        words: of the command line.
        is_plan: leave out, with a line, what depends on variables without a value.

    Raises:
        ValueError: a variable has no value.
    """
    for place, word in enumerate(words):
        flag, _, name = word.partition("=")
        if flag not in _FILE_FLAGS:
            continue
        after = place + 1
        if not name:
            name, after = (words[after] if after < len(words) else ""), after + 1
        path = _found(name)
        rest = [*words[:place], *words[after:]]
        said = None if path is None else _said(path)
        if path is None or said is None:
            continue
        given = {BY_NAME[other].dest for other in rest if other in BY_NAME}
        return [*_words(path, said, given, is_plan), *rest]
    return list(words)


def _found(name: str) -> Path | None:
    try:
        return find_yaml(name) if name else None
    except ValueError:
        return None  # told by those who read the layouts of this project


def _said(path: Path) -> list[tuple[str, Any]] | None:
    """Flag -> value, as a file says it; None if it is of another layout."""
    try:
        document = read_yaml(path)
    except ValueError:
        return None
    flags = document.get(_FLAGS_KEY)
    if isinstance(flags, Mapping):
        return [(f"{key}", _plain(_filled(value, env.get))) for key, value in _leaves(flags)]
    if set(document) & set(SECTION_CLASSES):
        return None
    if isinstance(document.get("defaults"), list) and "experiment" in document:
        document = _with_defaults(path, document)
    blocks = document.get("train", document)
    if not isinstance(blocks, Mapping) or sum(name in blocks for name in _BLOCKS) < 2:
        return None
    parts = [blocks[name] for name in _BLOCKS if isinstance(blocks.get(name), Mapping)]
    said = [leaf for part in parts for leaf in _leaves(part)]
    folder = _at(document, "experiment.exp_dir")
    said = [*_folders(str(folder)), *said] if folder else said
    return [
        (f"--{key.replace('_', '-')}", _filled(value, lambda name: _at(document, name)))
        for key, value in said
    ]


def _plain(value: Any) -> Any:
    r"""Return a value as a shell would pass it on.

    >>> _plain(r"Et*3\\\\|\\\\(tt\\\\|\\\\)*6mL")
    'Et*3|(tt|)*6mL'
    """
    return _ESCAPED.sub("", value) if isinstance(value, str) else value


def _with_defaults(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment with the training file that it names beside it."""
    merged = dict(document)
    for item in document["defaults"]:
        for block, name in item.items() if isinstance(item, Mapping) else ():
            merged[block] = read_yaml(find_yaml(Path(str(block)) / str(name), path.parent))
    return merged


def _folders(folder: str) -> list[tuple[str, str]]:
    """Folders of an experiment that the launcher names itself."""
    names = {"save": "checkpoints", "load": "checkpoints", "tensorboard-dir": "tensorboard"}
    return [(flag, f"{folder}/{name}") for flag, name in names.items()]


def _leaves(node: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield str(key), value


def _at(document: Mapping[str, Any], name: str) -> Any:
    """Return what a document has at a dotted name."""
    node: Any = document
    for part in name.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _filled(value: Any, lookup: Lookup) -> Any:
    """Put values of variables into a text, or into the texts of a list."""
    if isinstance(value, list):
        return [_filled(item, lookup) for item in value]
    if not isinstance(value, str):
        return value
    whole = _VARIABLE.fullmatch(value)
    found = lookup(whole[1]) if whole else None
    if found is not None and not isinstance(found, Mapping):
        return _filled(found, lookup) if found != value else value

    def text_of(match: re.Match[str]) -> str:
        known = lookup(match[1])
        if known is None:
            known = match[2] if match[2] and "?" not in match[2] else match[0]
        return str(known)

    return _VARIABLE.sub(text_of, value)


def _words(
    path: Path, said: list[tuple[str, Any]], given: set[str], is_plan: bool
) -> Iterator[str]:
    """Make the words of flags and values; ``given`` are arguments of the command line."""
    latest = dict(said)
    for flag, value in latest.items():
        row = BY_NAME.get(flag)
        if value is False or (isinstance(value, str) and value.lower() == "false"):
            continue
        unset = _UNSET.search(str(value))
        if unset:
            if row is not None and (row.dest in given or isinstance(row.state, NoEffect)):
                continue
            if not is_plan:
                raise ValueError(
                    f"{path}: {flag} is {value}, and {unset[0][2:-1]} has no value; set the "
                    f"variable, or give {flag} on the command line"
                )
            logger.warning("%s: %s %s is left out: the variable has no value", path, flag, value)
            continue
        yield flag
        if value is True or value is None or (isinstance(value, str) and value.lower() == "true"):
            continue
        takes_several = row is not None and row.arity in ("some", "many", "three")
        for item in value if isinstance(value, list) else [value]:
            yield from str(item).split() if takes_several else [str(item)]
