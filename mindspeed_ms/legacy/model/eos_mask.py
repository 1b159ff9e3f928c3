# SPDX-License-Identifier: Apache-2.0
"""Positions and masks of sequences that hold several documents."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell
from numpy.typing import NDArray

from mindspeed_ms.backend import memory


class EosMask(Cell):
    """Keeps the documents of a packed sequence apart at each end-of-document token.

    Args:
        batch_size: rows of a micro-batch.
        seq_len: tokens of a row.
        eod_token_id: token that ends a document (0 is a token like any other); it belongs to the
            document it ends.
        reset_position_ids: count positions from 0 in each document.

    Everything is computed on integers, so positions are exact at any length.
    """

    def __init__(
        self, batch_size: int, seq_len: int, eod_token_id: int, reset_position_ids: bool
    ) -> None:
        super().__init__()
        self.shape = (batch_size, seq_len)
        self.eod_token_id = eod_token_id
        self.reset_position_ids = reset_position_ids

    def construct(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [b, s] -> (position ids int32 [b, s], mask bool [b, s, s] with True = blocked).

        Raises:
            ValueError: ids of another shape than (batch_size, seq_len).
        """
        ids = memory.as_numpy(memory.contiguous(input_ids))
        positions, document = self.documents(ids)
        future = np.triu(np.ones((self.shape[1], self.shape[1]), np.bool_), k=1)
        mask = future | (document[:, :, None] != document[:, None, :])
        return memory.from_numpy(np.ascontiguousarray(positions)), memory.from_numpy(mask)

    def documents(self, ids: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids [b, s] -> (position ids, numbers of the documents), both [b, s].

        Raises:
            ValueError: ids of another shape than (batch_size, seq_len).
        """
        if ids.shape != self.shape:
            raise ValueError(
                f"input_ids have shape {ids.shape}; the mask was built for "
                f"(batch_size, seq_len) = {self.shape}"
            )
        ends = ids == self.eod_token_id
        document = (np.cumsum(ends, axis=1) - ends).astype(np.int32)
        positions = np.broadcast_to(np.arange(self.shape[1], dtype=np.int32), self.shape)
        if self.reset_position_ids:
            starts = np.zeros(self.shape, np.int32)
            starts[:, 1:] = np.where(ends[:, :-1], positions[:, 1:], 0)
            positions = positions - np.maximum.accumulate(starts, axis=1)
        return positions, document
