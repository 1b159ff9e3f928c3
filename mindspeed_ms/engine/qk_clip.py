# SPDX-License-Identifier: Apache-2.0
"""Weights of queries and keys that are scaled down where scores got too large (MuonClip).

Source: Kimi Team, 2025 (Kimi K2), algorithm 1; Megatron-LM ``clip_qk`` (which scores, which rows).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore.nn import Cell

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.comm import ReduceOp
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.optimizer.flat_state import RowFactors
from mindspeed_ms.legacy.model.attention import ParallelAttention
from mindspeed_ms.legacy.model.multi_latent_attention import MultiLatentAttention
from mindspeed_ms.models.model import predicts_further


class QkClip:
    """What the optimizer does to weights of queries and keys after its update.

    The attentions note their largest scores, see ``AttentionLogits``. Layers for further tokens
    are left alone, as in Megatron.

    Args:
        chunks: the model of this rank.
        limit: largest score that is left alone.
        alpha: power of limit / score that queries take; keys take the rest.
    """

    def __init__(self, chunks: Sequence[Cell], limit: float, alpha: float) -> None:
        self._limit, self._alpha = limit, alpha
        self._attentions = [
            cell
            for chunk in chunks
            for name, cell in chunk.cells_and_names()
            if isinstance(cell, (ParallelAttention, MultiLatentAttention))
            and not predicts_further(name)
        ]

    def __call__(self) -> dict[int, RowFactors]:
        """Factors of the rows of weights, by ``id``; none where all scores are small enough.

        Parallelism: collective over data x context parallel ranks, which hold the same heads.
        """
        noted = [cell.core_attention.max_logits for cell in self._attentions]
        if not noted:
            return {}
        tops = np.concatenate([memory.as_numpy(one) for one in noted])
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        if group.size > 1:
            largest = memory.from_numpy(tops)
            comm.all_reduce(largest, op=ReduceOp.MAX, group=group)
            tops = memory.as_numpy(largest)
        factors: dict[int, RowFactors] = {}
        first = 0
        for cell in self._attentions:
            heads = cell.core_attention.num_heads
            own = tops[first : first + heads]
            first += heads
            if (own > self._limit).any():
                rows = cell.row_factors(own, self._limit, self._alpha)
                factors |= {id(param): factor for param, factor in rows}
        return factors
