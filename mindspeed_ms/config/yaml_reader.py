"""Reading YAML: numbers in any notation, no key twice, errors in one line."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML reader that takes ``1e-5`` as a number and refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is written twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the top-level keys of a YAML file.

    Raises:
        ValueError: the file cannot be read, is not YAML, or holds no keys.

    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  (a safe loader)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file; give a YAML file") from error
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path} is not valid YAML: {_one_line(error)}; correct it there"
        ) from error
    if not isinstance(document, Mapping):
        raise ValueError(
            f"{path} holds no keys; a configuration file has sections such as model_config"
        )
    return dict(document)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "unreadable"
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem
