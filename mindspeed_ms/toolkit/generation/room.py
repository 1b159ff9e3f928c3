# SPDX-License-Identifier: Apache-2.0
"""Whether what is asked for has room in memory, before a model begins with it."""

from __future__ import annotations

from mindspeed_ms.backend.host_memory import free_memory
from mindspeed_ms.config import AllConfig
from mindspeed_ms.planning.cache import cache_bytes_per_token

GIB = 2**30
OF_A_TOKEN = 8
"""Bytes beside the cache: its id, twice."""


def require_room(config: AllConfig, rows: int, tokens: int, fix: str) -> None:
    """Refuse sequences whose keys and values have no room in this host's memory.

    Less than a gibibyte is not looked at.

    Args:
        config: the model's.
        rows: sequences.
        tokens: of each, at most.
        fix: what to change, for the message.

    Raises:
        ValueError: they have none.
    """
    stages = range(config.parallel_config.pipeline_model_parallel_size)
    of_token = OF_A_TOKEN + max(cache_bytes_per_token(config, stage) for stage in stages)
    needed = rows * tokens * of_token
    if needed <= GIB:
        return
    free = free_memory()
    if needed > free.num_bytes:
        made_for = config.model_config.max_position_embeddings or config.model_config.seq_length
        raise ValueError(
            f"{rows} sequence(s) of up to {tokens} tokens need a cache of {needed / GIB:,.0f} GiB, "
            f"but {free.limit} has {free.num_bytes / GIB:,.1f} GiB left; the model was made for "
            f"{made_for} positions: {fix}"
        )
