# SPDX-License-Identifier: Apache-2.0
"""Memory is asked for before it is taken: a run that cannot fit its hosts ends at the start."""

from __future__ import annotations

import platform

from mindspeed_ms.backend import comm, device
from mindspeed_ms.backend.host_memory import free_memory
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.planning.activations import stage_activations
from mindspeed_ms.planning.memory import stage_state

_GB = 1e9


def _told(size: float) -> str:
    """A size for readers."""
    return f"{size / _GB:.2f} GB" if size >= _GB / 100 else f"{size / 1e6:.2f} MB"


def require_memory(config: AllConfig) -> None:
    """Compare what the plan says with what the hosts have left, all ranks of a host together.

    Both are printed.

    Nothing is compared where tensors live on a device, whose own driver refuses at once.

    Raises:
        ValueError: a host has not enough; the message has the plan's figures.

    Parallelism: collective over the world, before anything large is made.
    """
    world_size, stage = comm.get_world_size(), parallel_state.get_pipeline_model_parallel_rank()
    state = stage_state(config, world_size, stage)
    parts = {
        "weights": state.weights,
        "gradients": state.gradients,
        "optimizer": state.optimizer,
        "activations": stage_activations(config, stage, config.num_micro_batches(world_size)).peak,
    }
    if device.is_ascend() or config.training_config.allow_oversubscription:
        print_rank_0(f"memory: rank 0 needs {_told(sum(parts.values()))} by the plan")
        return
    words = ", ".join(f"{name} {size / _GB:.2f}" for name, size in parts.items())
    free = free_memory()
    mine = (platform.node(), sum(parts.values()), free.num_bytes, free.limit, words)
    everyones = comm.all_gather_object(mine) if comm.get_world_size() > 1 else [mine]
    fullest, room = max(item[1] for item in everyones), min(item[2] for item in everyones)
    print_rank_0(
        f"memory: the fullest rank needs {_told(fullest)} by the plan; {_told(room)} are left"
    )
    for host in dict.fromkeys(item[0] for item in everyones):
        ranks = [item for item in everyones if item[0] == host]
        needed, left = sum(item[1] for item in ranks), min(item[2] for item in ranks)
        if needed > left:
            largest = max(ranks, key=lambda item: item[1])
            raise ValueError(
                f"host {host} has {left / _GB:.2f} GB of memory left ({ranks[0][3]}), its "
                f"{len(ranks)} ranks need {needed / _GB:.2f} GB by the plan, the largest "
                f"{largest[1] / _GB:.2f} GB ({largest[4]}); spread the model over more hosts, "
                "recompute more, or start nevertheless with --allow-oversubscription"
            )
