# SPDX-License-Identifier: Apache-2.0
"""Small things that MindFormers' users import for their scripts: a log, a type for switches."""

from __future__ import annotations

import logging

from mindspeed_ms.engine.output import set_up_output
from mindspeed_ms.toolkit.yaml_config import parse_bool

set_up_output()  # a script's first lines come before the ranks have met
logger = logging.getLogger("mindspeed_ms.script")
"""Log of a script; its lines carry their rank."""


def str2bool(text: str | bool) -> bool:
    """``type=str2bool`` of ``argparse``: true, false, yes, no, 1 or 0 in any case.

    Raises:
        ValueError: another word.

    >>> str2bool("True"), str2bool("0")
    (True, False)
    """
    return text if isinstance(text, bool) else parse_bool(str(text))
