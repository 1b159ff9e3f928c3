# SPDX-License-Identifier: Apache-2.0
"""Rows that are looked up by position."""

from __future__ import annotations

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.core.tensor_parallel.index_range import require_range
from mindspeed_ms.legacy.model.from_spec import parameter
from mindspeed_ms.models.part import TableSpec


class PositionEmbedding(Cell):
    """A table of rows that is whole on every rank; see ``TableSpec.offset``."""

    def __init__(self, spec: TableSpec) -> None:
        super().__init__()
        (weight,) = spec.parameters()
        self.weight, self.offset = parameter(weight), spec.offset

    def construct(self, position_ids: Tensor) -> Tensor:
        """Position ids of any shape [...] -> [..., h]."""
        require_range(position_ids, self.weight.shape[0] - self.offset, "position")
        if self.offset:
            position_ids = position_ids + self.offset
        return ops.embedding(self.weight, position_ids)
