# SPDX-License-Identifier: Apache-2.0
"""Small things that MindFormers' users import for their scripts: a log, a type for switches."""

from __future__ import annotations

import logging

from mindspeed_ms.engine.output import set_up_output
from mindspeed_ms.toolkit.yaml_config import parse_bool


class _ScriptLog(logging.Logger):
    """Shows its lines from the first one on, which may come before any run."""

    def __init__(self, package: str) -> None:
        super().__init__(f"{package}.script")
        self.parent = logging.getLogger(package)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        """Whether a line is shown; asked before each."""
        if self.parent is not None and not self.parent.handlers:
            set_up_output()
        return level >= self.getEffectiveLevel()


logger = _ScriptLog("mindspeed_ms")
"""Log of a script; its lines carry their rank."""


def str2bool(text: str | bool) -> bool:
    """``type=str2bool`` of ``argparse``: true, false, yes, no, 1 or 0 in any case.

    Raises:
        ValueError: another word.

    >>> str2bool("True"), str2bool("0")
    (True, False)
    """
    return text if isinstance(text, bool) else parse_bool(str(text))
