# SPDX-License-Identifier: Apache-2.0
"""Files that a configuration names are found from any folder a run is started in."""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.build import Sections
from mindspeed_ms.config.dataset_config import DatasetConfig
from mindspeed_ms.config.training_config import TrainingConfig
from mindspeed_ms.files.regular_file import real_path
from mindspeed_ms.files.shipped import SHIPPED

READ_BY_SECTION: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        DatasetConfig.NAME: (
            "data_path",
            "train_data_path",
            "valid_data_path",
            "test_data_path",
            "data_args_path",
            "per_split_data_args_path",
            "per_dataset_sequences_path",
            "tokenizer_model",
            "vocab_file",
            "merge_file",
        ),
        TrainingConfig.NAME: ("load_checkpoint",),
    }
)
"""Fields that name what a run reads. What it writes goes to the working directory."""

_LEVELS = 4
"""Folders above a checkpoint in which its run may have been started."""

DATA_SUFFIXES = ("", ".bin", ".idx")
"""A name may be the prefix of the files of a dataset."""


def located(sections: Sections, folder: Path) -> Sections:
    """Return sections whose files are named as they can be opened from the working directory.

    Args:
        sections: of one file.
        folder: where that file lies.
    """
    found = {name: dict(values) for name, values in sections.items()}
    for section, names in READ_BY_SECTION.items():
        values = found.get(section, {})
        for name in names:
            if values.get(name):
                values[name] = located_value(values[name], folder)
    training = found.get(TrainingConfig.NAME, {})
    if training.get("load_checkpoint") and training.get("output_dir"):
        stated = sections[TrainingConfig.NAME]
        if stated["load_checkpoint"] == stated["output_dir"]:  # a run that goes on with itself
            training["load_checkpoint"] = stated["load_checkpoint"]
    return found


def located_value(value: Any, folder: Path) -> Any:
    """Return a path, or each path of a list, where it is: see :func:`located_path`."""
    if isinstance(value, str):
        return located_path(value, folder)
    if isinstance(value, list | tuple):
        return type(value)(located_value(item, folder) for item in value)
    return value


def located_from_checkpoint(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the files of data that a run named, where they are.

    Relative names start from where the run was started, which is here or above its checkpoint.

    Args:
        values: fields of the data that a checkpoint states.
        folder: the checkpoint's.
    """
    found = {name: values[name] for name in READ_BY_SECTION[DatasetConfig.NAME] if name in values}
    for place in real_path(folder).parents[:_LEVELS]:
        found = {name: located_value(value, place) for name, value in found.items()}
    return found


def located_path(name: str, folder: Path) -> str:
    """Return where a relative path leads to.

    It is looked up in the working directory, beside the file that states it, in the folder above
    (of a project with its configurations in one folder), and among what this package brings.

    Returns:
        ``name`` itself if it is absolute, is found in the working directory, or nowhere.
    """
    if not name or os.path.isabs(name) or is_there(name):
        return name
    for place in (folder, folder.parent, SHIPPED):
        path = os.path.normpath(place / name)
        if is_there(path):
            return path
    return name


def is_there(path: str) -> bool:
    """Whether a file, a folder or a dataset is there; no name raises."""
    return any(os.path.exists(path + suffix) for suffix in DATA_SUFFIXES)
