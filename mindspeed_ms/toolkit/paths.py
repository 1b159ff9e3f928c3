# SPDX-License-Identifier: Apache-2.0
"""Paths in a configuration: relative to where the run was started, and never remote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_ms.backend import env
from mindspeed_ms.toolkit.yaml_config import leaves

LAUNCH_FOLDER = "MINDSPEED_MS_LAUNCH_DIR"
"""Where a launch script was called, when ranks work in folders of their own."""

_REMOTE = re.compile(r"(obs|s3|hdfs|https?)://", re.IGNORECASE)
_UNREAD = ("remote_save_url",)
_PATHS = re.compile(
    r"(output_dir|load_checkpoint|resume_training|.*\.dataset_dir|.*\.dataset_files"
    r"|.*\.checkpoint_name_or_path|.*\.directory)"
)


def require_local(name: str, key: str) -> None:
    """Refuse a path that is on another machine.

    Raises:
        ValueError: it is.
    """
    if _REMOTE.match(name):
        raise ValueError(
            f"{key}: remote paths are not read; copy {name} to a local folder and name that"
        )


def usable(name: str) -> str:
    """A path as this process can use it, wherever the launch script has put it."""
    folder = env.get(LAUNCH_FOLDER)
    if not folder or not name or Path(name).is_absolute():
        return name
    path = Path(folder) / name
    return str(path) if path.exists() or not Path(name).exists() else name


def localize(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose paths can be used here.

    Raises:
        ValueError: a value is a remote path.
    """
    for key, value in leaves(tree):
        if isinstance(value, str) and key not in _UNREAD:
            require_local(value, key)
    return _localize(tree, "")


def _localize(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result[key] = _localize(value, f"{path}.")
        elif isinstance(value, list):
            result[key] = [
                _localize(item, f"{path}.") if isinstance(item, Mapping) else item for item in value
            ]
        elif isinstance(value, str) and value and _PATHS.fullmatch(path):
            result[key] = usable(value)
        else:
            result[key] = value
    return result
