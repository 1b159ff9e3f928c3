# SPDX-License-Identifier: Apache-2.0
"""Megatron's path of ``mindspeed_ms.engine.current_config``."""

from mindspeed_ms.engine.current_config import (
    get_all_config,
    set_all_config,
)

__all__ = [
    "get_all_config",
    "set_all_config",
]
