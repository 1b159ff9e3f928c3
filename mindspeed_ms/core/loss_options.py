# SPDX-License-Identifier: Apache-2.0
"""How a run forms its loss, beside what its model says."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_ms.core import run_state


@dataclass(slots=True)
class LossOptions:
    """Set by the run before its first step; a model outside of a run takes the usual ones."""

    weighs_by_tokens: bool = False
    """Every loss is a sum over tokens, divided by the tokens of the whole step."""
    sums: bool = False
    """The loss of a micro-batch is the sum over its tokens instead of the mean."""
    label_smoothing: float = 0.0
    """Share of the target's probability that all tokens of the vocabulary get."""

    def smoothing_of(self, vocab_size: int) -> float:
        """What ``vocab_parallel_cross_entropy`` takes for it: the part the other tokens get."""
        return self.label_smoothing * (vocab_size - 1) / vocab_size


def current() -> LossOptions:
    """Those of the run."""
    return run_state.member_of_current(LossOptions)
