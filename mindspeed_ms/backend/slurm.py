"""Ranks that ``srun`` starts, one Python process each, without any launcher of torch.

Slurm tells every task its number and the hosts of the step. Task 0 starts the scheduler that
``msrun`` would start; all tasks then look like workers of ``msrun``, on CPU and on Ascend.

Source: Slurm's documentation of ``srun``, section output environment variables.
"""

from __future__ import annotations

import subprocess
import sys

from mindspeed_ms.backend import env
from mindspeed_ms.backend.torchrun import worker

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
    variables: dict[str, str | int] = {
        "MS_WORKER_NUM": num_tasks(),
        "MS_SCHED_HOST": env.get("MASTER_ADDR") or first_host(nodes),
        "MS_SCHED_PORT": env.get("MASTER_PORT") or _FIRST_PORT + (job + step) % _NUM_PORTS,
        "MS_NODE_ID": rank,
        "RANK_ID": rank,
        "DEVICE_ID": env.get_int("SLURM_LOCALID") or 0,
    }
    for name, value in variables.items():
        env.put(name, value)
    if rank == 0:
        env.put("MS_ROLE", "MS_SCHED")
        subprocess.Popen([sys.executable, worker.__file__])
    env.put("MS_ROLE", "MS_WORKER")
