# SPDX-License-Identifier: Apache-2.0
"""Whether the packages are installed that curves are written with."""

from __future__ import annotations

import importlib.util

from mindspeed_ms.config import AllConfig

INSTALL = 'pip install "mindspeed_ms[{}]"'


def has_tensorboard() -> bool:
    """Whether event files can be written."""
    return importlib.util.find_spec("tensorboardX") is not None


def missing_tensorboard(config: AllConfig) -> str | None:
    """A line about curves that will not be written; None if they are, or nobody asks for them.

    Megatron's scripts nearly all ask for them, and train without, as with Megatron.
    """
    folder = config.training_config.tensorboard_dir
    if not folder or has_tensorboard():
        return None
    return (
        f"WARNING: no curves are written to {folder}, as the package tensorboardX is not installed "
        f"({INSTALL.format('tensorboard')})"
    )


def require_wandb(config: AllConfig) -> None:
    """Refuse a run whose figures cannot be sent.

    Raises:
        ValueError: with what is missing.
    """
    project = config.training_config.wandb_project
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"wandb_project {project} needs the package wandb, which is not installed; "
            f"{INSTALL.format('wandb')}, or leave wandb_project out"
        )
