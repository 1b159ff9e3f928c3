# SPDX-License-Identifier: Apache-2.0
"""One parameter: its names, its global shape, how ranks share it, and its initial values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mindspeed_ms.config.dtypes import DType
from mindspeed_ms.plan.region import Stack

Partial = Literal["never", "sequence", "always"]
"""Whether the gradient of a rank is a part of a sum over its tensor parallel group: never, where
ranks hold different tokens (sequence parallelism), or because they always hold different heads."""


@dataclass(frozen=True, slots=True)
class Init:
    """Initial values: N(0, std^2), or one value."""

    std: float | None = None
    """None: every element is ``value``, and nothing is drawn."""

    value: float = 0.0

    bound: float | None = None
    """Elements lie in [-bound, bound], all alike. Without ``std`` they are drawn from a stream of
    the parameter's own, by its name, so what is drawn for other parameters does not depend on it;
    with ``std`` 1 they are the ranks of the normal numbers that are drawn."""

    log_range: tuple[float, float] | None = None
    """With ``std`` 1, elements are logarithms of numbers between these, all alike."""

    is_xavier: bool = False
    """Elements of a matrix [out, in] lie in [-b, b], all alike, with b = sqrt(6 / (out + in))
    (Glorot and Bengio, 2010)."""

    is_drawn_twice: bool = False
    """As many numbers are drawn before and thrown away. ``torch.nn.Embedding`` fills its table when
    it is built; Megatron then draws the real values, so all later weights depend on both draws."""

    def words(self, shape: Sequence[int]) -> int:
        """32-bit words of the initialisation stream that a tensor of this global shape takes."""
        if self.is_xavier:
            return math.prod(shape) + (words_of_normal(shape) if self.is_drawn_twice else 0)
        if self.std is None:
            return 0
        return words_of_normal(shape) * (2 if self.is_drawn_twice else 1)


def words_of_normal(shape: Sequence[int]) -> int:
    """Words that a normal tensor takes: torch draws at least 16, and its last 16 twice."""
    padded = max(math.prod(shape), 16)
    return padded + (16 if padded % 16 else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamSpec:
    """One parameter of a model.

    Within a part of a model both names are relative to the part.
    """

    name: str
    """Path here; layers and experts are counted over the whole model."""

    megatron_name: str
    """Path in Megatron-core, counted likewise. Layouts of the tensors are equal."""

    shape: tuple[int, ...]
    """Of the whole tensor."""

    dtype: DType

    init: Init = Init(value=0.0)

    partition_dim: int = -1
    """Dimension that tensor parallel ranks split, -1: every rank holds all of it."""

    partition_stride: Stack = 1
    """Stacked matrices that are split one by one: 2 for [gate; up], whose rank r holds
    [gate_r; up_r]; or their sizes, where these differ."""

    partial_gradient: Partial = "never"

    most_partitions: int | None = None
    """More ranks than these do not split it: each holds all of it and uses a part."""

    expert: int | None = None
    """Number of the expert it belongs to: then the expert tensor parallel ranks split it, and it
    is reduced over the expert data parallel group."""

    is_trained: bool = True
    """False for state that is kept in checkpoints but gets no gradient."""

    is_vocabulary: bool = False
    """Rows are tokens, padded to a number that the tensor parallel size divides."""

    is_adapter: bool = False
    """It belongs to an adapter beside a frozen matrix."""

    is_frozen: bool = False
    """Part of a model whose adapters alone are trained; checkpoints of a run leave it out."""

    def __post_init__(self) -> None:
        """A dimension that is split must exist."""
        assert self.partition_dim < len(self.shape), f"{self.name}: no dim {self.partition_dim}"

    @property
    def size(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)

    @property
    def words(self) -> int:
        """Words that its initial values take from the initialisation stream."""
        return self.init.words(self.shape)

    def ranks_of(self, tensor: int, expert_tensor: int) -> int:
        """Of tensor and expert tensor parallel ranks those that may split it."""
        return tensor if self.expert is None else expert_tensor

    def among(self, ranks: int) -> ParamSpec:
        """Itself, as so many ranks hold it that split its matrix."""
        if self.most_partitions is None or ranks <= self.most_partitions:
            return self
        return replace(self, partition_dim=-1, partial_gradient="always", most_partitions=None)

    def local_shape(self, tensor: int, expert_tensor: int) -> tuple[int, ...]:
        """Shape on one rank.

        Args:
            tensor: tensor parallel ranks.
            expert_tensor: expert tensor parallel ranks.
        """
        ranks = self.ranks_of(tensor, expert_tensor)
        dim, shape = self.among(ranks).partition_dim, list(self.shape)
        if dim >= 0:
            shape[dim] //= ranks
        return tuple(shape)
