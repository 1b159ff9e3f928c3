# SPDX-License-Identifier: Apache-2.0
"""``MindFormerConfig``: a file in MindFormers' style as a dict whose keys are attributes too.

Source: MindFormers r0.3 to r1.0 (names, and that a key that is not there is None).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mindspeed_ms.toolkit.attribute_dict import AttributeDict
from mindspeed_ms.toolkit.given import mapping
from mindspeed_ms.toolkit.yaml_config import Tree, find_file, load_tree, merge_trees, tree_of


class MindFormerConfig(AttributeDict):
    """Settings of a run: ``config.runner_config.epochs``, ``config["seed"]``.

    Args:
        sources: YAML files, whose ``base_config`` is read too, and mappings; later ones win, key by
            key.
        values: further keys, which win over all of these.

    Raises:
        TypeError: a source that is neither.
        ValueError: a file that is not there or cannot be read.

    >>> config = MindFormerConfig({"runner_config": {"epochs": 2}}, seed=1)
    >>> config.runner_config.epochs, config.seed, config.not_there
    (2, 1, None)
    """

    def __init__(self, *sources: str | os.PathLike[str] | Mapping[str, Any], **values: Any) -> None:
        super().__init__()
        for key, value in merge_trees([*map(_tree, sources), values]).items():
            self[key] = value

    def __delattr__(self, name: str) -> None:
        self.pop(name, None)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _attributes(value))

    def merge_from_dict(self, options: Mapping[str, Any]) -> None:
        """Set keys by their dotted names, e.g. ``{"runner_config.epochs": 2}``.

        Raises:
            ValueError: a name is used as a value and as a section.
        """
        for key, value in merge_trees([self, tree_of(mapping("options", options))]).items():
            self[key] = value

    def to_dict(self) -> Tree:
        """A copy as plain data."""
        return {key: _plain(value) for key, value in self.items()}


def _tree(source: Any) -> Mapping[str, Any]:
    if isinstance(source, str | os.PathLike):
        return load_tree(find_file(os.fspath(source)))
    return mapping("MindFormerConfig's source", source)


def _attributes(value: Any) -> Any:
    if isinstance(value, Mapping) and not isinstance(value, MindFormerConfig):
        return MindFormerConfig(value)
    return [_attributes(one) for one in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, MindFormerConfig):
        return value.to_dict()
    return [_plain(one) for one in value] if isinstance(value, list) else value
