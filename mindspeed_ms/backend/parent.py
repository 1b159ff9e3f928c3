# SPDX-License-Identifier: Apache-2.0
"""Processes that end with the one that has started them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def tie_to(parent: int, number: int = signal.SIGTERM) -> Callable[[], None] | None:
    """What a child does first: ask for a signal for when its parent dies.

    Args:
        parent: process id; the thread of it that starts the child must live on.
        number: of the signal.

    Returns:
        None where the system has no such thing.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "prctl"):  # not Linux
        return None

    def tie() -> None:
        library.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(1)

    return tie
