# SPDX-License-Identifier: Apache-2.0
"""The random words of one dropout, reserved from a generator; shared by every kernel set."""

from __future__ import annotations

from mindspeed_ms.backend.random import Generator

BLOCK = 4
"""Words that one evaluation of Philox4x32 gives."""


def draw(generator: Generator, count: int) -> tuple[int, int]:
    """Reserve ``count`` words, rounded up to whole blocks so that the next draw starts aligned."""
    return generator.reserve((count + BLOCK - 1) // BLOCK * BLOCK)
