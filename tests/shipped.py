# SPDX-License-Identifier: Apache-2.0
"""The configuration files of the project that are in its own style."""

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
MINDFORMERS = CONFIGS / "gpt2"
"""In MindFormers' style: see ``unit/toolkit/test_mapping.py``."""


def own_configs():
    """All others, in order."""
    return sorted(path for path in CONFIGS.rglob("*.yaml") if MINDFORMERS not in path.parents)
