"""Runs in every process that ``msrun`` starts for a launcher of torch.

Gives the script the variables that torchrun sets, before its first line; notes how it ends. Only
the standard library is imported here: what the script prints first is its own.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

FOLDER = "MINDSPEED_MS_STATUS_DIR"
RANKS_PER_NODE = "MINDSPEED_MS_RANKS_PER_NODE"


def set_variables() -> str:
    """Set RANK, LOCAL_RANK and their like from what ``msrun`` tells; return the rank."""
    variables = os.environ
    rank = variables.get("MS_NODE_ID", "0")
    per_node = int(variables.get(RANKS_PER_NODE, "1"))
    size = variables.get("MS_WORKER_NUM", "1")
    variables.update(
        RANK=rank,
        LOCAL_RANK=str(int(rank) % per_node),
        GROUP_RANK=str(int(rank) // per_node),
        WORLD_SIZE=size,
        LOCAL_WORLD_SIZE=str(per_node),
    )
    variables.setdefault("MASTER_ADDR", variables.get("MS_SCHED_HOST", "127.0.0.1"))
    variables.setdefault("MASTER_PORT", variables.get("MS_SCHED_PORT", "0"))
    return rank


def note_end(rank: str, status: object) -> None:
    """Leave the exit status of a rank for the launcher."""
    folder = os.environ.get(FOLDER)
    if folder:
        Path(folder, f"end_{rank}").write_text(f"{time.time()} {status}")


def run_script(words: list[str]) -> None:
    """Run a script, or with ``-m`` a module, as Python itself would."""
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path[0] = ""
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    """Run the script named on the command line as one rank."""
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        sys.path.pop(0)  # this folder, which the script's ranks do not search either
        runpy.run_module("mindspeed_ms.backend.torchrun.scheduler", run_name="__main__")
        return
    rank = set_variables()
    try:
        run_script(sys.argv[1:])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code:
            note_end(rank, code)
        raise
    except BaseException:
        note_end(rank, 1)
        raise


if __name__ == "__main__":
    main()
