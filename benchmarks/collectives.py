# SPDX-License-Identifier: Apache-2.0
"""Blocking collectives of ranks of one host against a copy in memory, and against MPI's own way.

    mpiexec -n 2 python benchmarks/collectives.py
    mpiexec -n 4 python benchmarks/collectives.py --megabytes 0.25 1 64 --rounds 20

Every round times a copy of the tensor, the collective as training calls it, and the same through
MPI alone, one after the other; the slowest rank counts, and the median round. Small tensors are
moved several times in a row, so that what is timed is not how the ranks leave a barrier. All ranks
copy at the same time, so the copy's speed is that of a rank's share of the memory.

``share_of_limit`` compares with the best that ranks can do which may read each other's memory as
fast as their own. Of a tensor of N bytes on n ranks, a rank then reads and writes 2 N to gather or
to exchange (its own part has to move, too), N + N/n to scatter a sum, 3 N - N/n for a sum that
everybody gets: its part of all terms, the sum, and the others' sums; a copy is 2 N.
``share_of_copy`` counts only the bytes that a rank must receive: (n-1)/n of N, for a sum that
everybody gets twice that.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from mindspeed_ms.backend import comm, memory, peer_memory

logger = logging.getLogger("collectives")

WAYS = {"here": peer_memory.LEAST_BYTES, "mpi": sys.maxsize}

MOVED = 2**24
"""Bytes that are moved, at least, while the watch runs."""


def seconds(work: Callable[[], object], times: int) -> float:
    """Time of one of several calls in a row, of the slowest rank."""
    comm.barrier()
    started = time.perf_counter()
    for _ in range(times):
        work()
    mine = memory.from_numpy(np.array([(time.perf_counter() - started) / times]))
    comm.all_reduce(mine, comm.ReduceOp.MAX)
    return float(memory.as_numpy(mine)[0])


def calls(elements: int) -> dict[str, tuple[Callable[[], object], float, float]]:
    """Name -> (the collective, bytes a rank must receive per byte of the tensor, copies it is)."""
    size = comm.get_world_size()
    whole = memory.from_numpy(np.zeros(elements, np.float32))
    other = memory.from_numpy(np.ones(elements, np.float32))
    part = memory.from_numpy(np.zeros(elements // size, np.float32))
    share = (size - 1) / size
    return {
        "all_reduce": (lambda: comm.all_reduce(whole), 2 * share, (3 - 1 / size) / 2),
        "all_gather": (lambda: comm.all_gather_into_tensor(whole, part), share, 1.0),
        "reduce_scatter": (
            lambda: comm.reduce_scatter_tensor(part, whole),
            share,
            (1 + 1 / size) / 2,
        ),
        "all_to_all": (lambda: comm.all_to_all_single(whole, other), share, 1.0),
    }


def measure(megabytes: float, rounds: int) -> list[dict[str, object]]:
    """One row per collective."""
    elements = int(megabytes * 2**18) // comm.get_world_size() * comm.get_world_size()
    source, target = np.ones(elements, np.float32), np.zeros(elements, np.float32)
    rows: list[dict[str, object]] = []
    repeated = max(1, MOVED // source.nbytes)
    for name, (call, share, copies) in calls(elements).items():
        times: dict[str, list[float]] = {"copy": [], **{way: [] for way in WAYS}}
        for turn in range(rounds + 1):
            taken = {"copy": seconds(lambda: np.copyto(target, source), repeated)}
            for way, least in WAYS.items():
                peer_memory.LEAST_BYTES = least
                taken[way] = seconds(call, repeated)
            for key, value in taken.items():
                times[key] += [value] if turn else []  # the first round sets up
        middle = {key: statistics.median(values) for key, values in times.items()}
        rows.append(
            {
                "collective": name,
                "ranks": comm.get_world_size(),
                "megabytes": megabytes,
                **{f"{key}_ms": round(value * 1e3, 3) for key, value in middle.items()},
                "share_of_limit": round(
                    statistics.median(
                        copies * copy / here
                        for copy, here in zip(times["copy"], times["here"], strict=True)
                    ),
                    3,
                ),
                "share_of_copy": round(share * middle["copy"] / middle["here"], 3),
                "share_of_copy_mpi": round(share * middle["copy"] / middle["mpi"], 3),
                "ratio_to_mpi": round(middle["mpi"] / middle["here"], 2),
            }
        )
    return rows


def main() -> None:
    """Print one JSON line per collective and size, on the first rank."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[0.25, 1.0, 4.0, 64.0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    comm.init_process_group()
    for megabytes in options.megabytes:
        for row in measure(megabytes, options.rounds):
            if comm.get_rank() == 0:
                logger.info(json.dumps(row))
    comm.destroy_process_group()


if __name__ == "__main__":
    main()
