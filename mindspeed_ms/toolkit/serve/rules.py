# SPDX-License-Identifier: Apache-2.0
"""Rules for scores that only servers have: OpenAI's penalties, Megatron's options.

They travel to the other ranks with their request, so they are plain values that can be called.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindspeed_ms.core.inference import logits_processors
from mindspeed_ms.core.inference.logits_processors import Ids, Scores


@dataclass(frozen=True, slots=True)
class Penalties:
    """OpenAI's penalties of tokens that were generated already.

    Source: OpenAI's description: score - count * frequency - (count > 0) * presence.
    """

    prompt_length: int
    presence: float
    frequency: float

    def __call__(self, ids: Ids, scores: Scores) -> Scores:
        """[b, s], [b, v] -> [b, v]."""
        scores = scores.copy()
        for row, own in zip(ids[:, self.prompt_length :], scores, strict=True):
            tokens, counts = np.unique(row, return_counts=True)
            own[tokens] -= (counts * self.frequency + self.presence).astype(np.float32)
        return scores


@dataclass(frozen=True, slots=True)
class FallingTopP:
    """Megatron's top-p that is multiplied by ``decay`` at every step, down to ``bound``."""

    prompt_length: int
    top_p: float
    decay: float
    bound: float

    def __call__(self, ids: Ids, scores: Scores) -> Scores:
        """[b, s], [b, v] -> [b, v]."""
        step = ids.shape[1] - self.prompt_length
        mass = max(self.top_p * self.decay**step, self.bound)
        return logits_processors.top_p(mass)(ids, scores)


@dataclass(frozen=True, slots=True)
class NeverAfter:
    """A token that may not follow another one."""

    first: int
    second: int

    def __call__(self, ids: Ids, scores: Scores) -> Scores:
        """[b, s], [b, v] -> [b, v]."""
        scores = scores.copy()
        scores[ids[:, -1] == self.first, self.second] = logits_processors.RULED_OUT
        return scores


@dataclass(frozen=True, slots=True)
class LineEnds:
    """Megatron's ends of a text: a line's end, or an empty line."""

    single: frozenset[int]
    """Tokens that are one line's end."""
    double: frozenset[int]
    """Tokens that are two."""
    wants_double: bool
    """One line's end is not enough."""

    def __call__(self, token: int, previous: int) -> bool:
        """Whether a token ends the text."""
        if token in self.double:
            return True
        return token in self.single and (not self.wants_double or previous in self.single)
