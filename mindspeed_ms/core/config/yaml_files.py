"""Reading and writing YAML configuration files."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import yaml

from mindspeed_ms.core.config.all_config import AllConfig
from mindspeed_ms.core.config.build import build_selected, clean_sections, merge_sections
from mindspeed_ms.core.config.legacy_keys import Sections
from mindspeed_ms.core.config.section import Section

BASE_KEY = "base"
"""Key that names the file, or files, a configuration builds on."""

_PROJECT_CONFIGS = Path(__file__).resolve().parents[3] / "configs"


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


def find_yaml(name: str | Path, beside: Path | None = None) -> Path:
    """Return the file a name stands for.

    Looks beside the including file, in the working directory, then in ``configs/`` and its sub-
    folders, of the working directory first and of the project second.

    Raises:
        ValueError: there is no such file.

    """
    name = Path(name)
    folders = [beside] if beside else []
    folders.append(Path())
    for configs in (Path("configs"), _PROJECT_CONFIGS):
        folders.append(configs)
        if configs.is_dir():
            folders.extend(sorted(folder for folder in configs.iterdir() if folder.is_dir()))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"there is no configuration file {name}; looked in the working directory and in configs/, "
        "check the name"
    )


def load_sections(
    paths: str | Path | Sequence[str | Path], model_type: str = "model_config"
) -> Sections:
    """Return the merged sections of one or several files and of the files they build on.

    Among several files the later wins; a file wins over its base.

    Raises:
        ValueError: a file is missing or unreadable, includes itself, or holds an unknown key or a
            wrong value.

    """
    names = [paths] if isinstance(paths, str | Path) else list(paths)
    return merge_sections(_load_file(find_yaml(name), model_type, ()) for name in names)


def _load_file(path: Path, model_type: str, including: tuple[Path, ...]) -> Sections:
    resolved = path.resolve()
    if resolved in including:
        raise ValueError(
            f"{path} builds on itself through {BASE_KEY}; remove one of the {BASE_KEY} keys"
        )
    document = read_yaml(path)
    bases = document.pop(BASE_KEY, None) or []
    if isinstance(bases, str):
        bases = [bases]
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise ValueError(
            f"{path}: {BASE_KEY} is {bases!r}, but must be a file name or a list of them"
        )
    layers = [
        _load_file(find_yaml(base, path.parent), model_type, (*including, resolved))
        for base in bases
    ]
    try:
        layers.append(clean_sections(document, model_type))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return merge_sections(layers)


@overload
def init_configs_from_dict(
    config_dict: Mapping[str, Any], config_classes: None = None, model_type: str = "model_config"
) -> AllConfig: ...


@overload
def init_configs_from_dict(
    config_dict: Mapping[str, Any],
    config_classes: Sequence[type[Section]],
    model_type: str = "model_config",
) -> Section | list[Section]: ...


def init_configs_from_dict(
    config_dict: Mapping[str, Any],
    config_classes: Sequence[type[Section]] | None = None,
    model_type: str = "model_config",
) -> AllConfig | Section | list[Section]:
    """Build the configuration from nested plain data, in the flat or the 38BV3 style.

    Args:
        config_dict: section -> key -> value.
        config_classes: build only these classes; None builds an :class:`AllConfig`.
        model_type: name of the model section.

    Raises:
        ValueError: an unknown key, a wrong value, a missing key or a broken rule.

    """
    return build_selected(clean_sections(config_dict, model_type), config_classes, model_type)


@overload
def init_configs_from_yaml(
    file_path: str | Path | Sequence[str | Path],
    config_classes: None = None,
    **overrides: Mapping[str, Any],
) -> AllConfig: ...


@overload
def init_configs_from_yaml(
    file_path: str | Path | Sequence[str | Path],
    config_classes: Sequence[type[Section]],
    **overrides: Mapping[str, Any],
) -> Section | list[Section]: ...


def init_configs_from_yaml(
    file_path: str | Path | Sequence[str | Path],
    config_classes: Sequence[type[Section]] | None = None,
    **overrides: Mapping[str, Any],
) -> AllConfig | Section | list[Section]:
    """Build the configuration from one YAML file or several (model, accelerate, train).

    Args:
        file_path: name or names; see :func:`find_yaml` for where they are looked for.
        config_classes: build only these classes; None builds an :class:`AllConfig`.
        overrides: ``section={key: value}`` that win over the files.

    Returns:
        An :class:`AllConfig`, or one section for one class, or a list of sections in the order of
        the classes.

    Raises:
        ValueError: an unreadable file, an unknown key, a wrong value, a missing key or a broken
            rule.

    """
    sections = merge_sections([load_sections(file_path), clean_sections(overrides)])
    return build_selected(sections, config_classes)


def to_yaml(all_config: AllConfig) -> str:
    """Return the resolved configuration as YAML, defaults included; it loads back equal."""
    return yaml.safe_dump(all_config.to_dict(), sort_keys=False, allow_unicode=True, width=100)
