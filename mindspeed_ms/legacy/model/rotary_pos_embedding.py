# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding (Su et al., 2021). Legend: s sequence, d rotated channels."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.config.rope_scaling_config import RopeScalingConfig
from mindspeed_ms.models.rotation import frequencies, growth

STRETCHED_LENGTH = 8192
"""Tokens per sequence before stretching, in Llama 3.1 and in Megatron."""

FEWEST_TURNS, MOST_TURNS = 1.0, 4.0
"""Channels that turn less over that length are stretched in full; those that turn more are kept."""


def stretched(frequency: np.ndarray, factor: float) -> np.ndarray:
    """Angular frequencies for sequences ``factor`` times as long. Shape: [d/2].

    Source: the Llama 3.1 model card (rule); Megatron-LM ``--use-rope-scaling`` (constants).
    """
    turns = np.float32(STRETCHED_LENGTH) * frequency / np.float32(2 * np.pi)
    kept = np.clip((turns - FEWEST_TURNS) / (MOST_TURNS - FEWEST_TURNS), 0, 1).astype(np.float32)
    return frequency * (kept + (1 - kept) / np.float32(factor))


class RotaryEmbedding(Cell):
    """Tables of cosines and sines of the rotation angles.

    Args:
        kv_channels: channels of a head.
        rotary_percent: share of the channels that is rotated, from the first on.
        rotary_interleaved: rotate neighbours (2i, 2i+1) instead of halves (i, i + d/2).
        seq_len_interpolation_factor: divides the positions, None for 1.
        rotary_base: base of the angular frequencies base^(-2i/d).
        rope_scaling: stretch slow frequencies for longer sequences as Llama 3.1 does.
        rope_scaling_factor: how far; without effect if not ``rope_scaling``.
        stretching: further ways to stretch, default none.
        longest: tokens per sequence that the model was made for; read by some of them.
        dtype: type whose values the tables hold. Megatron rounds them to the type of the queries
            unless rotation is fused; they are stored as fp32 all the same.

    Source: Megatron-LM ``RotaryEmbedding`` (angles in fp32; position ids are not used).
    """

    def __init__(  # noqa: PLR0913 - Megatron's public signature, and two more
        self,
        kv_channels: int,
        rotary_percent: float = 1.0,
        rotary_interleaved: bool = False,
        seq_len_interpolation_factor: float | None = None,
        rotary_base: float = 10000,
        rope_scaling: bool = False,
        rope_scaling_factor: float = 8.0,
        dtype: str | mstype.Type = "float32",
        *,
        stretching: RopeScalingConfig = RopeScalingConfig(),  # noqa: B008 - it is frozen
        longest: int = 1,
    ) -> None:
        super().__init__()
        dim = int(kv_channels * rotary_percent)
        if dim < 2 or dim % 2:
            raise ValueError(
                f"kv_channels ({kv_channels}) x rotary_percent ({rotary_percent}) = {dim}; the "
                "number of rotated channels must be even and at least 2"
            )
        self.rotary_interleaved = rotary_interleaved
        self._dtype = memory.dtype_of(dtype)
        self._scale = np.float32(1.0 / (seq_len_interpolation_factor or 1.0))
        self._stretching, self._longest = stretching, longest
        self._base, self._channels = rotary_base, dim
        self._growth = np.float32(growth(stretching, longest))
        frequency = self._frequency(longest)
        self._inverse_frequency = (
            stretched(frequency, rope_scaling_factor) if rope_scaling else frequency
        )
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def construct(self, max_seq_len: int, offset: int = 0) -> tuple[Tensor, Tensor]:
        """(cos, sin), each fp32 [max_seq_len, 1, 1, d], for positions from ``offset`` on."""
        key = (max_seq_len, offset)
        if key not in self._tables:
            self._tables[key] = self.tables_for(np.arange(offset, offset + max_seq_len))
        return self._tables[key]

    def _frequency(self, length: int) -> np.ndarray:
        """Angular frequencies for sequences of so many tokens. Shape: [d/2]."""
        place = (self._base, self._channels, length, self._longest)
        return frequencies(self._stretching, *place)

    @property
    def goes_by_length(self) -> bool:
        """Whether the angles depend on how long the sequence is."""
        return self._stretching.rope_type in ("dynamic", "longrope")

    def tables_for(
        self, positions: np.ndarray, lengths: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """(cos, sin), each fp32 [s, 1, 1, d], for any positions [s].

        Args:
            positions: of the tokens.
            lengths: [s], tokens of the sequence of each, for ways to stretch that go by it. None:
                one sequence that ends at the last position.
        """
        frequency = self._inverse_frequency
        if self.goes_by_length:
            if lengths is None:
                lengths = np.full(len(positions), positions.max(initial=0) + 1)
            own, places = np.unique(lengths, return_inverse=True)
            frequency = np.stack([self._frequency(int(length)) for length in own])[places]
        angles = (positions.astype(np.float32) * self._scale)[:, None] * frequency
        if self.rotary_interleaved:
            angles = np.repeat(angles, 2, axis=1)
        else:
            angles = np.concatenate([angles, angles], axis=1)
        angles = angles[:, None, None, :]
        return self._rounded(np.cos(angles)), self._rounded(np.sin(angles))

    def _rounded(self, table: np.ndarray) -> Tensor:
        if self._growth != 1.0:
            table = table * self._growth
        tensor = memory.from_numpy(table)
        if self._dtype == mstype.float32:
            return tensor
        return ops.cast(ops.cast(tensor, self._dtype), mstype.float32)


class RotaryPair(Cell):
    """Tables of layers that see everything, and of those with a window."""

    def __init__(self, whole: RotaryEmbedding, local: RotaryEmbedding) -> None:
        super().__init__()
        self.whole, self.local = whole, local

    def construct(self, max_seq_len: int, offset: int = 0) -> tuple[Tensor, ...]:
        """Those of the first, then of the second; see ``RotaryEmbedding``."""
        return (*self.whole(max_seq_len, offset), *self.local(max_seq_len, offset))

    @property
    def goes_by_length(self) -> bool:
        """See ``RotaryEmbedding``."""
        return self.whole.goes_by_length

    def tables_for(
        self, positions: np.ndarray, lengths: np.ndarray | None = None
    ) -> tuple[Tensor, ...]:
        """Those of the first, then of the second, for any positions [s]."""
        return (
            *self.whole.tables_for(positions, lengths),
            *self.local.tables_for(positions, lengths),
        )
