# SPDX-License-Identifier: Apache-2.0
"""Megatron's path of ``mindspeed_ms.engine.output``."""

from mindspeed_ms.engine.output import print_rank_0, print_rank_last

__all__ = ["print_rank_0", "print_rank_last"]
