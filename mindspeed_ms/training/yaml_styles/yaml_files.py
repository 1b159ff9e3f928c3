# SPDX-License-Identifier: Apache-2.0
"""Reading and writing YAML configuration files."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from mindspeed_ms.config.all_config import AllConfig
from mindspeed_ms.config.beside import located
from mindspeed_ms.config.build import Sections
from mindspeed_ms.config.section import Section
from mindspeed_ms.config.yaml_reader import read_yaml
from mindspeed_ms.files.regular_file import real_path
from mindspeed_ms.files.shipped import CONFIGS, SHIPPED
from mindspeed_ms.training.yaml_styles.build import build_selected, clean_sections, merge_sections

BASE_KEY = "base"
"""Key that names the file, or files, a configuration builds on."""


def find_yaml(name: str | Path, beside: Path | None = None) -> Path:
    """Return the file a name stands for.

    Looks beside the including file, in the working directory, then in ``configs/`` and its sub-
    folders, of the working directory first and of the project second. ``.yaml`` may be left out.

    Raises:
        ValueError: there is no such file.

    """
    name = Path(name)
    folders = [beside] if beside else []
    folders.append(Path())
    for configs in (Path("configs"), CONFIGS):
        folders.append(configs)
        if configs.is_dir():
            folders.extend(sorted(folder for folder in configs.iterdir() if folder.is_dir()))
    folders.append(SHIPPED)
    for folder in folders:
        for file in (folder / name, folder / f"{name}.yaml"):
            if os.path.isfile(file):  # which does not raise for names no file can have
                return file
    raise ValueError(
        f"there is no configuration file {name}; looked in the working directory and in configs/, "
        "check the name"
    )


def load_sections(
    paths: str | Path | Sequence[str | Path],
    model_type: str = "model_config",
    repeated: Callable[[str], None] | None = None,
) -> Sections:
    """Return the merged sections of one or several files and of the files they build on.

    Among several files the later wins; a file wins over its base. ``repeated`` is told of keys that
    are written twice, whose last value counts then; without it they are refused.

    Raises:
        ValueError: a file is missing or unreadable, includes itself, or holds an unknown key or a
            wrong value.

    """
    names = [paths] if isinstance(paths, str | Path) else list(paths)
    return merge_sections(_load_file(find_yaml(name), model_type, (), repeated) for name in names)


def _load_file(
    path: Path,
    model_type: str,
    including: tuple[Path, ...],
    repeated: Callable[[str], None] | None = None,
) -> Sections:
    resolved = real_path(path)
    if resolved in including:
        raise ValueError(
            f"{path} builds on itself through {BASE_KEY}; remove one of the {BASE_KEY} keys"
        )
    document = read_yaml(path, repeated)
    bases = document.pop(BASE_KEY, None) or []
    if isinstance(bases, str):
        bases = [bases]
    if not (isinstance(bases, list) and all(isinstance(base, str) for base in bases)):
        raise ValueError(
            f"{path}: {BASE_KEY} is {bases!r}, but must be a file name or a list of them"
        )
    layers = [
        _load_file(find_yaml(base, path.parent), model_type, (*including, resolved), repeated)
        for base in bases
    ]
    try:
        layers.append(located(clean_sections(document, model_type), path.parent))
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
