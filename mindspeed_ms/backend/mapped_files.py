# SPDX-License-Identifier: Apache-2.0
"""What files this process has mapped into its memory."""

from __future__ import annotations

import os
from pathlib import Path


def mapped_files() -> list[str]:
    """Their paths, in the order of addresses; none where the system does not tell.

    Source: Linux ``proc_pid_maps`` (a line: address, rights, offset, device, inode, path).
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    # Names of files are bytes of any kind: a corpus that is mapped may have one that is no text.
    lines = (line.split(maxsplit=5) for line in maps.read_bytes().split(b"\n"))
    return list(dict.fromkeys(os.fsdecode(words[5]) for words in lines if len(words) == 6))
