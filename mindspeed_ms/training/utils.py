# SPDX-License-Identifier: Apache-2.0
"""The guide's path of ``mindspeed_ms.engine.parallel_setup``."""

from mindspeed_ms import old_names
from mindspeed_ms.engine.parallel_setup import (
    DEFAULT_SEED,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
    get_blend_and_blend_per_split,
    set_parallel_context,
    set_seed,
)

__all__ = [
    "DEFAULT_SEED",
    "get_batch_on_this_cp_rank",
    "get_batch_on_this_tp_rank",
    "get_blend_and_blend_per_split",
    "set_parallel_context",
    "set_seed",
]

__getattr__ = old_names.of(__name__)
