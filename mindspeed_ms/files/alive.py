# SPDX-License-Identifier: Apache-2.0
"""Whether a process of this machine still runs."""

from __future__ import annotations

import os
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether a process does anything any more; one that only waits to be noticed does not.

    Containers whose first process is no ``init`` keep those for ever.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:  # no Linux, or it has just gone
        return True
    return state.rpartition(")")[2].split()[:1] != ["Z"]
