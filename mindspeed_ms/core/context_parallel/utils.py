# SPDX-License-Identifier: Apache-2.0
"""The predecessor's path of what cuts batches."""

from mindspeed_ms.predecessor.context_parallel import (
    get_batch_on_this_cp_rank,
    get_sp_chuncks,
    get_sp_chuncks_attn_mask_general,
    get_sp_chuncks_general,
)

__all__ = [
    "get_batch_on_this_cp_rank",
    "get_sp_chuncks",
    "get_sp_chuncks_attn_mask_general",
    "get_sp_chuncks_general",
]
