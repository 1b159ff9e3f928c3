# SPDX-License-Identifier: Apache-2.0
"""A run that begins with the weights of another checkpoint until it has one of its own."""

from __future__ import annotations

from pathlib import Path

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core.dist_checkpointing.opener import find_together
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.formats.find import OnlyTornError


def started_from_pretrained(config: AllConfig) -> AllConfig:
    """The configuration that loads ``pretrained_checkpoint`` if there is nothing to go on from.

    Source: Megatron-LM ``load_checkpoint`` (``--pretrained-checkpoint``): a run that is started
    again with the same arguments goes on from what it has saved.

    Parallelism: collective over the world.
    """
    training = config.training_config
    pretrained, load = training.pretrained_checkpoint, training.load_checkpoint
    if pretrained is None:
        return config
    try:
        if load and find_together(Path(load), training.ckpt_step) is not None:
            return config
    except OnlyTornError:
        pass
    where = f"{load} holds no checkpoint" if load else "no checkpoint is named to go on from"
    print_rank_0(f" {where}; the weights of {pretrained} are taken (as with --finetune)")
    sections = config.to_dict()
    sections["training_config"] |= {
        "load_checkpoint": pretrained,
        "ckpt_step": None,
        "finetune": True,
        "resume_training": False,
        "exit_on_missing_checkpoint": True,
    }
    return assemble(sections, config.model_type)
