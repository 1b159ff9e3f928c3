# SPDX-License-Identifier: Apache-2.0
"""Where a run stands; a checkpoint keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TrainState:
    """Iterations and samples so far."""

    iteration: int = 0
    consumed_train_samples: int = 0
    """Of all ranks, over all data sets the run has trained on."""
    consumed_valid_samples: int = 0
    """Of all ranks, in each validation set."""
    data_began_at: int = 0
    """Training samples that had been consumed when the present data began: 0, or where
    ``new_dataset`` was given last."""

    @property
    def position_in_data(self) -> int:
        """Samples of the present training data that all ranks have consumed."""
        return self.consumed_train_samples - self.data_began_at
