# SPDX-License-Identifier: Apache-2.0
"""An adapter of low rank beside a frozen matrix: Y += s (X A^T) B^T on some of its outputs.

Source: Hu et al., 2021 (LoRA); Liu et al., 2024 (DoRA) for the magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mindspeed_ms.config.dtypes import DType
from mindspeed_ms.models.parameter import Init, ParamSpec, Partial
from mindspeed_ms.plan.region import Region, Run, Stack

FOLDER = "adapters"
"""Part of the path of all parameters of adapters."""
DOWN, UP, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSpec:
    """An adapter of a region: some rows of a fused matrix W [outputs, inputs]."""

    region: str
    """Name among the regions of the matrix, such as ``q`` of the matrix for queries, keys and
    values."""

    runs: tuple[Run, ...]
    """(first row, number of rows) of W, in the order of the rows of B."""

    rank: int
    scale: float
    """What the product is multiplied by."""

    stride: Stack = 1
    """Stacked matrices among the rows that ranks split one by one: 3 for as many queries, then
    keys, then values."""

    most_parts: int | None = None
    """Ranks that split the matrix may be more: then they cut through what belongs together in the
    region, and each holds all rows of B."""

    dropout: float = 0.0
    """Probability of dropping an element of the input."""

    has_magnitude: bool = False
    """Rows of the adapted matrix are scaled to a trained length."""

    @property
    def rows(self) -> int:
        """Outputs that it changes."""
        return sum(length for _, length in self.runs)

    def parameters(
        self, inputs: int, split: Literal["column", "row", "whole"], dtype: DType
    ) -> Iterator[ParamSpec]:
        """A [rank, inputs], B [rows, rank] and, with magnitudes, m [rows].

        Beside a matrix whose outputs are split, A is whole and B is split like them; beside one
        whose inputs are split, A is split and B whole. A whole one sees the tokens of its rank.

        Args:
            inputs: of the matrix.
            split: what tensor parallel ranks split of the matrix.
            dtype: of its elements.
        """
        path = f"{FOLDER}.{self.region}"
        whole: Partial = "sequence"

        def one(name: str, shape: tuple[int, ...], init: Init, dim: int) -> ParamSpec:
            return ParamSpec(
                name=f"{path}.{name}",
                megatron_name=f"{path}.{name}",
                shape=shape,
                dtype=dtype,
                init=init,
                partition_dim=dim,
                partition_stride=self.stride if dim == 0 else 1,
                partial_gradient="never" if dim >= 0 else whole,
                most_partitions=self.most_parts if dim == 0 else None,
                is_adapter=True,
            )

        by_rows = 0 if split == "column" else -1
        bound = Init(bound=1.0 / math.sqrt(inputs))
        yield one(DOWN, (self.rank, inputs), bound, 1 if split == "row" else -1)
        yield one(UP, (self.rows, self.rank), Init(value=0.0), by_rows)
        if self.has_magnitude:
            yield one(MAGNITUDE, (self.rows,), Init(value=1.0), by_rows)

    def places(
        self, outputs: int, stride: Stack, of_matrix: tuple[int, int], of_rows: tuple[int, int]
    ) -> list[int]:
        """For each output on a rank the row of B as it holds it, -1 for outputs left alone.

        Args:
            outputs: of the matrix, over all ranks.
            stride: ``LinearSpec.stride`` of the matrix.
            of_matrix: number of the rank among those that split the outputs, and how many they are.
            of_rows: the same of B, which each of them may hold whole.
        """
        held = _rows(Region.of_part((outputs,), 0, *of_matrix, stride).runs[0])
        mine = _rows(Region.of_part((self.rows,), 0, *of_rows, self.stride).runs[0])
        globally = _rows(self.runs)
        by_output = {globally[row]: number for number, row in enumerate(mine)}
        assert of_rows[1] == 1 or by_output.keys() <= set(held), f"{self.region} splits otherwise"
        return [by_output.get(output, -1) for output in held]


def _rows(runs: tuple[Run, ...]) -> list[int]:
    return [row for first, length in runs for row in range(first, first + length)]


def is_adapter_name(name: str) -> bool:
    """Whether a parameter's path is that of an adapter."""
    return f".{FOLDER}." in name
