# SPDX-License-Identifier: Apache-2.0
"""A run that its launcher starts again goes on from its own newest checkpoint."""

from __future__ import annotations

from pathlib import Path

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core.dist_checkpointing.shared_folders import first_rank_decides
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.formats import own_format
from mindspeed_ms.formats.find import OnlyTornError, find_checkpoint


def resumed(config: AllConfig) -> AllConfig:
    """The configuration with which a run goes on after a failure; at its first start, its own.

    Where the run has written a checkpoint since then, it continues from there in every respect,
    whatever it had been told to load at first. Otherwise it starts as at first.

    Parallelism: collective over the world once the launcher has restarted the job.
    """
    training = config.training_config
    if comm.num_restarts() == 0 or not training.save_checkpoints:
        return config
    root = Path(training.output_dir)
    names = set(comm.all_gather_object(comm.job_name()))  # each host has a launcher
    iteration = first_rank_decides(lambda: _newest_of_job(root, names))
    if iteration is None:
        print_rank_0(f"restart {comm.num_restarts()}: no checkpoint yet, the run begins anew")
        return config
    print_rank_0(f"restart {comm.num_restarts()}: the run goes on from iteration {iteration}")
    sections = config.to_dict()
    sections["training_config"] |= {
        "load_checkpoint": training.output_dir,
        "ckpt_step": None,
        "override_ckpt_iteration": None,
        "resume_training": True,
        "finetune": False,
        "new_dataset": False,
        "no_load_optim": False,
        "no_load_rng": False,
    }
    return assemble(sections, config.model_type)


def _newest_of_job(root: Path, names: set[str]) -> int | None:
    """The iteration of the checkpoint that counts, if this job has written it.

    Its name says so, not the time of the file: clocks differ between hosts, and are set.
    """
    try:
        found = find_checkpoint(root)
    except OnlyTornError:
        return None
    if found is None or found.kind != "mindspeed_ms":
        return None
    return found.iteration if own_format.read_index(found.folder).get("job") in names else None
