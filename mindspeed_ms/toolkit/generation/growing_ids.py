# SPDX-License-Identifier: Apache-2.0
"""The tokens of one sequence, in an array that grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class GrowingIds:
    """All tokens of a sequence; one more costs no copy of those before.

    Args:
        prompt: ids to begin with.
    """

    def __init__(self, prompt: Sequence[int] | NDArray[np.integer]) -> None:
        self._memory = np.concatenate([np.asarray(prompt, np.int64), np.zeros(16, np.int64)])
        self._length = len(prompt)

    def __len__(self) -> int:
        return self._length

    @property
    def ids(self) -> NDArray[np.int64]:
        """[s], a view that the next ``append`` may leave behind."""
        return self._memory[: self._length]

    @property
    def last(self) -> int:
        """The newest token."""
        return int(self._memory[self._length - 1])

    def append(self, token: int) -> None:
        """Take one more token."""
        if self._length == len(self._memory):
            self._memory = np.concatenate([self._memory, np.zeros_like(self._memory)])
        self._memory[self._length] = token
        self._length += 1

    def truncate(self, length: int) -> None:
        """Forget the tokens behind the first so many."""
        self._length = min(self._length, length)
