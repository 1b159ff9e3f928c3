# SPDX-License-Identifier: Apache-2.0
"""A message of four bytes there and back between two ranks, started by ``limit.py``."""

from __future__ import annotations

import sys
import time

from mindspeed_ms.backend import comm, memory

MESSAGES = 2000


def round_trip() -> float:
    """Seconds of a message of four bytes there and back, best of five rounds, on two ranks."""
    comm.init_process_group()
    group, message = comm.world_group(), memory.zeros((1,), memory.dtype_of("float32"))
    other = 1 - comm.get_rank()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(MESSAGES // 5):
            if comm.get_rank() == 0:
                comm.isend(message, other, group).wait()
                comm.irecv(message, other, group).wait()
            else:
                comm.irecv(message, other, group).wait()
                comm.isend(message, other, group).wait()
        best = min(best, (time.perf_counter() - start) / (MESSAGES // 5))
    return best


if __name__ == "__main__":
    taken = round_trip()
    if comm.get_rank() == 0:
        sys.stdout.write(f"{taken:.9f}\n")
