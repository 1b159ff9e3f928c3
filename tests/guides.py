# SPDX-License-Identifier: Apache-2.0
"""Blocks of the users' documents: what stands between ``` fences, by language."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).with_name("data") / "guide"


def text(name):
    """The whole document, e.g. ``how_to_config``."""
    return (FOLDER / f"{name}.zh.md").read_text(encoding="utf-8")


def blocks(name, language):
    """The blocks of one language in the order of the document."""
    return re.findall(rf"```{language}\n(.*?)```", text(name), re.S)


def block(name, language, holding):
    """The one block that holds a text."""
    (found,) = [item for item in blocks(name, language) if holding in item]
    return found
