# SPDX-License-Identifier: Apache-2.0
"""Ranks that ``srun`` starts, one Python process each, without any launcher of torch.

Slurm tells every task its number and the hosts of the step; the tasks become workers of ``msrun``.

Source: Slurm's documentation of ``srun``, section output environment variables.
"""

from __future__ import annotations

from mindspeed_ms.backend import env, msrun_worker

_FIRST_PORT, _NUM_PORTS = 20000, 20000


def first_host(nodes: str) -> str:
    """Return the first host of Slurm's compressed list.

    >>> first_host("node[003-007,12],other"), first_host("a1,b2")
    ('node003', 'a1')
    """
    prefix, bracket, rest = nodes.partition("[")
    if not bracket or "," in prefix:
        return nodes.split(",", maxsplit=1)[0]
    return prefix + rest.replace("]", ",").split(",", maxsplit=1)[0].split("-", maxsplit=1)[0]


def num_tasks() -> int:
    """Tasks of this job step; 1 when this process was not started by ``srun``.

    A batch script has SLURM_PROCID too, but it is no task of a step.
    """
    if env.get("SLURM_STEP_ID") is None or env.get_int("SLURM_PROCID") is None:
        return 1
    return env.get_int("SLURM_STEP_NUM_TASKS") or env.get_int("SLURM_NTASKS") or 1


def prepare() -> None:
    """Under ``srun``, give this process the variables ``msrun`` gives its workers."""
    if env.get("MS_ROLE") or num_tasks() < 2:
        return
    rank = env.get_int("SLURM_PROCID") or 0
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or "127.0.0.1"
    job = env.get_int("SLURM_JOB_ID") or 0
    step = env.get_int("SLURM_STEP_ID") or 0
    host = env.get("MASTER_ADDR") or first_host(nodes)
    if env.get_int("SLURM_STEP_NUM_NODES") == 1:
        host = "127.0.0.1"
    port = env.get_int("MASTER_PORT") or _FIRST_PORT + (job + step) % _NUM_PORTS
    device = env.get_int("SLURM_LOCALID") or 0
    msrun_worker.become(rank, num_tasks(), (host, port), device, env.tasks_of_this_node())
