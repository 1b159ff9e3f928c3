# SPDX-License-Identifier: Apache-2.0
"""What the heads of one layer see, and what is done to their scores before the softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mindspeed_ms.config.attention_options import EVERYTHING, Window
from mindspeed_ms.config.dtypes import DType
from mindspeed_ms.models.parameter import Init, ParamSpec
from mindspeed_ms.models.part import Experts


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoresSpec:
    """The core of an attention; it has a parameter if it learns sinks."""

    num_heads: int
    """Over all ranks."""

    scale: float
    """Of queries times keys."""

    window: Window = EVERYTHING
    """Tokens around its own place that a query sees."""

    is_band: bool = False
    """The window takes the place of the causal mask."""

    softcap: float | None = None
    """Scores become ``softcap * tanh(score / softcap)``."""

    has_slopes: bool = False
    """Scores fall with the distance of tokens; see ``alibi_slopes``."""

    scales_slopes: bool = False
    """``scale`` multiplies what distance takes away, too."""

    has_sinks: bool = False
    """Every head has a further logit without a value: 0, or a parameter."""

    sinks: Init | None = None
    """Initial values of the parameter."""

    dtype: DType
    """Of the parameter."""

    storage: DType | None = None
    """Type to which scores are rounded; None: they are float32."""

    divisor: float = 1.0
    """Of the scores where they are rounded."""

    rounds_weights: bool = False
    """Round the result of the softmax, too."""

    def parameters(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """The sinks, if they are learned; Megatron-core calls them an offset of the softmax."""
        if self.sinks is not None:
            yield ParamSpec(
                name="softmax_offset",
                megatron_name="softmax_offset",
                shape=(self.num_heads,),
                dtype=self.dtype,
                init=self.sinks,
                partition_dim=0,
            )

    def seen(self, seq_length: int) -> int:
        """Keys that a query sees at most, without credit for the causal half."""
        left, right = self.window
        later = 0 if right is None else right
        return seq_length if left is None else min(seq_length, left + 1 + later)


def alibi_slopes(num_heads: int) -> list[float]:
    """How fast the scores of each head fall with the distance, the fastest first.

    A geometric sequence that ends at 2^-8; for a number of heads that is no power of two, that of
    the power below, and every second one of the power above.

    Source: Press et al., 2022 (ALiBi).

    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / below) for head in range(below)]
    between = [2.0 ** (-4.0 * (head + 1) / below) for head in range(0, 2 * below, 2)]
    return slopes + between[: num_heads - below]
