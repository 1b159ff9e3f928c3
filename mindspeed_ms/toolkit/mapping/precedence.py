# SPDX-License-Identifier: Apache-2.0
"""Which of several settings of one key holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_ms.toolkit.mapping.arguments import map_arguments
from mindspeed_ms.toolkit.mapping.tree import canonical
from mindspeed_ms.toolkit.yaml_config import Tree, merge_trees, tree_of

LayerTree = Mapping[str, Any]

_NONE: LayerTree = {}


def resolve(
    *,
    class_defaults: LayerTree = _NONE,
    base_config: LayerTree = _NONE,
    run_file: LayerTree = _NONE,
    arguments: Mapping[str, Any] = _NONE,
    options: LayerTree = _NONE,
    flags: LayerTree = _NONE,
    set_configs: LayerTree = _NONE,
) -> Tree:
    """Join the layers of a configuration key by key; each one is stronger than those before it.

    MindFormers replaces a section of ``base_config`` as a whole; here its keys stay that the run
    file does not give.

    Args:
        class_defaults: of the model's configuration class.
        base_config: the files that the run file builds on, joined.
        run_file: the file itself.
        arguments: ``TrainingArguments`` by their names; those that the trainer reads itself are
            not in the result (see ``map_arguments``).
        options: ``--options a.b=value``, as a tree.
        flags: other flags, as a tree.
        set_configs: ``parallel_config`` and ``recompute_config`` of the ``set_*_config`` calls.

    Raises:
        ValueError: a layer gives a key under two names; an argument that does not exist.
    """
    layers = (
        class_defaults,
        base_config,
        run_file,
        tree_of(map_arguments(arguments).keys),
        options,
        flags,
        set_configs,
    )
    return merge_trees(canonical(layer) for layer in layers)
