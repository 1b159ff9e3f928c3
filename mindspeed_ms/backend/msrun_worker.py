# SPDX-License-Identifier: Apache-2.0
"""Processes that nobody started with ``msrun`` become its workers.

Rank 0 starts the scheduler that ``msrun`` would start; from there on all ranks look alike, on CPU
and on Ascend.
"""

from __future__ import annotations

import socket

from mindspeed_ms.backend import env, scheduler


def become(
    rank: int,
    size: int,
    address: tuple[str, int],
    device_id: int | None,
    local_ranks: int | None = None,
) -> None:
    """Set the variables that ``msrun`` sets for a worker; rank 0 starts the scheduler as well.

    Args:
        rank: this process.
        size: all of them.
        address: host and port of the scheduler.
        device_id: number of this rank's device on its host; None if nobody knows.
        local_ranks: ranks on this host; None if nobody knows.

    Raises:
        RuntimeError: rank 0's host cannot serve on the address.
    """
    host, port = address
    variables: dict[str, str | int] = {
        "MS_WORKER_NUM": size,
        "MS_SCHED_HOST": host,
        "MS_SCHED_PORT": port,
        "MS_NODE_ID": rank,
        "RANK_ID": rank,
    }
    if device_id is not None:
        variables["DEVICE_ID"] = device_id
    for name, value in variables.items():
        env.put(name, value)
    if rank == 0:
        _require_free(host, port)
        scheduler.start_process(local_ranks)
    env.put("MS_ROLE", "MS_WORKER")


def _require_free(host: str, port: int) -> None:
    """The other ranks would wait for a scheduler that cannot start, or meet another job's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RuntimeError(
                f"rank 0 cannot serve this job on {host}:{port} ({error.strerror}); set "
                "MS_SCHED_PORT to a free port, and MS_SCHED_HOST to an address of rank 0's host, "
                "the same for all ranks"
            ) from None
