# SPDX-License-Identifier: Apache-2.0
"""Figures for Weights & Biases; without a network its ``WANDB_MODE=offline`` keeps them in files.

Source: Megatron-LM ``_set_wandb_writer`` (what the service is told at the start).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_ms.config import TrainingConfig
from mindspeed_ms.engine.observe.figures import Figures


class WandbWriter:
    """Sends figures to one run of the service.

    Args:
        training: project, name, account and folder.
        settings: the configuration, as plain data.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, training: TrainingConfig, settings: Mapping[str, Any]) -> None:
        self._library: Any = importlib.import_module("wandb")
        folder = Path(training.wandb_save_dir or Path(training.output_dir) / "wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = self._library.init(
            project=training.wandb_project,
            name=training.wandb_exp_name,
            entity=training.wandb_entity or None,
            dir=str(folder),
            config=dict(settings),
        )

    def write(self, figures: Figures) -> None:
        """The curves over iterations, and how many sequences there were."""
        if figures.by_iteration:
            samples = {"samples vs steps": figures.consumed_samples}
            self._run.log(samples | figures.by_iteration, step=figures.iteration)

    def write_texts(self, texts: Mapping[str, str], iteration: int) -> None:
        """The service has the settings already."""

    def close(self) -> None:
        """Complete the run and end the library's process."""
        self._run.finish()
        self._library.teardown()
