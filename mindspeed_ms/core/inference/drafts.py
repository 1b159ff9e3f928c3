# SPDX-License-Identifier: Apache-2.0
"""Tokens that are proposed cheaply, and verified by one step of the whole model.

Legend: B rows, S new tokens of the longest row, v vocabulary.

Source: Leviathan et al., 2023 (verification); Saxena, 2023 (drafts from the prompt).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.core.inference.engine import InferenceEngine, Logits
from mindspeed_ms.core.inference.logits_processors import softmax
from mindspeed_ms.ops.attention_call import Places

Choice = Callable[[Logits], NDArray[np.int64]]
"""Of the logits [B, v] of a draft's next place: the tokens [B] that are drafted there."""
Sequences = Sequence[NDArray[np.int64]]


class Drafts:
    """Sequences of an engine whose next tokens somebody proposes.

    ``add`` takes in prompts, ``propose`` drafts, ``verify`` gives the logits behind every token of
    a draft, ``keep`` takes back those that are not wanted.

    Args:
        engine: the model that verifies, over its cache.

    Parallelism: as ``InferenceEngine``.
    """

    def __init__(self, engine: InferenceEngine) -> None:
        self.engine = engine

    def add(self, prompts: Sequence[Sequence[int]]) -> tuple[Places, Logits]:
        """Take in sequences; see ``InferenceEngine.add``."""
        return self.engine.add(prompts)

    def fork(self, slots: Places, copies: int) -> Places:
        """See ``KVCache.fork``."""
        return self.engine.cache.fork(slots, copies)

    def propose(
        self, slots: Places, sequences: Sequences, choose: Choice, most: int
    ) -> list[list[int]]:
        """Draft tokens for each row, maybe none.

        Args:
            slots: [B].
            sequences: all ids of each row, one more than its slot holds.
            choose: picks the tokens of a place, for those that have logits of it.
            most: tokens that any row needs at most; more are of no use.
        """
        raise NotImplementedError

    def verify(self, slots: Places, tokens: Sequence[Sequence[int]]) -> Logits:
        """Append tokens to sequences: logits [S, B, v] behind each of them."""
        return self.engine.extend(slots, tokens, wants_all=True)

    def keep(self, slots: Places, appended: Places, wanted: Places) -> None:
        """Take the last tokens of sequences back.

        Args:
            slots: [B].
            appended: [B], tokens of each row that ``verify`` appended.
            wanted: [B], how many of them stay.
        """
        cache = self.engine.cache
        cache.truncate(slots, cache.lengths[slots] - (appended - wanted))


class PromptDrafts(Drafts):
    """Drafts of what followed the last tokens of a sequence when they stood there before.

    Args:
        engine: see ``Drafts``.
        count: tokens of a draft, at most.
        longest: last tokens that are looked for; fewer, down to one, where they are not found.
    """

    def __init__(self, engine: InferenceEngine, count: int, longest: int) -> None:
        super().__init__(engine)
        self.count, self.longest = count, longest

    def propose(
        self, slots: Places, sequences: Sequences, choose: Choice, most: int
    ) -> list[list[int]]:
        """See ``Drafts``."""
        count = min(self.count, most)
        return [continuation(row, self.longest)[:count].tolist() for row in sequences]


def continuation(ids: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """What followed the last tokens of [s] where they stood first, of as many as can be found."""
    for size in range(min(longest, len(ids) - 1), 0, -1):
        runs = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
        found = (runs == ids[-size:]).all(axis=1)
        if found.any():
            return ids[found.argmax() + size :]
    return ids[:0]


class ModelDrafts(Drafts):
    """Drafts of another, smaller model with the same tokens.

    Args:
        engine: see ``Drafts``.
        assistant: the smaller model, over a cache of its own.
        count: tokens of a draft, at most.
        least: a draft ends with a token of less than this probability.

    Raises:
        ValueError: the models have different vocabularies.

    Parallelism: all ranks of the engine call it alike; the assistant may have another layout.
    """

    def __init__(
        self, engine: InferenceEngine, assistant: InferenceEngine, count: int, least: float
    ) -> None:
        super().__init__(engine)
        if assistant.vocab_size != engine.vocab_size:
            raise ValueError(
                f"the assistant_model has {assistant.vocab_size} tokens, but the model "
                f"{engine.vocab_size}; give one with the model's tokenizer"
            )
        self.assistant, self.count, self.least = assistant, count, least
        self._slots: dict[int, int] = {}  # of the engine -> of the assistant

    def add(self, prompts: Sequence[Sequence[int]]) -> tuple[Places, Logits]:
        """See ``Drafts``."""
        slots, logits = super().add(prompts)
        self._pair(slots, self.assistant.add(prompts)[0])
        return slots, logits

    def fork(self, slots: Places, copies: int) -> Places:
        """See ``Drafts``."""
        result = super().fork(slots, copies)
        self._pair(result, self.assistant.cache.fork(self._own(slots), copies))
        return result

    def propose(
        self, slots: Places, sequences: Sequences, choose: Choice, most: int
    ) -> list[list[int]]:
        """See ``Drafts``. A sequence that the assistant has no positions for gets none."""
        count, limit = min(self.count, most), self.assistant.max_length
        if limit is not None:
            count = min(count, limit + 1 - max(map(len, sequences)))
        own, drafts = self._own(slots), [list[int]() for _ in sequences]
        lengths, is_open = self.assistant.cache.lengths[own], np.ones(len(own), bool)
        tokens = [row[length:] for row, length in zip(sequences, lengths, strict=True)]
        for _ in range(count):
            logits = self.assistant.extend(own, tokens)
            chosen = choose(logits)
            for row in np.flatnonzero(is_open):
                drafts[row].append(int(chosen[row]))
            is_open &= softmax(logits)[np.arange(len(own)), chosen] >= self.least
            if not is_open.any():
                break
            tokens = list(chosen[:, None])
        return drafts

    def keep(self, slots: Places, appended: Places, wanted: Places) -> None:
        """See ``Drafts``."""
        super().keep(slots, appended, wanted)
        self.assistant.cache.truncate(self._own(slots), self.engine.cache.lengths[slots])

    def _pair(self, slots: Places, own: Places) -> None:
        self._slots.update(zip(slots.tolist(), own.tolist(), strict=True))

    def _own(self, slots: Places) -> Places:
        """The assistant's slots of sequences."""
        return np.array([self._slots[int(slot)] for slot in slots], np.int64)
