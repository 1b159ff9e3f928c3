"""When the training loop writes checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mindspeed_ms.config import AllConfig
from mindspeed_ms.core.dist_checkpointing.saver import CheckpointSaver
from mindspeed_ms.core.distributed import DistributedDataParallel
from mindspeed_ms.core.optimizer import MegatronOptimizer, OptimizerParamScheduler
from mindspeed_ms.engine.checkpointing import save_checkpoint
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.engine.train_state import TrainState


class SavedRun(Protocol):
    """What a checkpoint is made of; the training loop has it."""

    config: AllConfig
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    state: TrainState

    @property
    def model(self) -> Sequence[DistributedDataParallel]:
        """The chunks of this rank."""


class RunCheckpoints:
    """The checkpoints of a run: at intervals, when it is stopped, and at its end.

    Args:
        saver: writes them.
        loaded: iteration the run was loaded at from the very folder it saves to, which need not be
            written again.
        vocab_size: tokens in use, None if unknown.
    """

    def __init__(
        self, saver: CheckpointSaver, loaded: int | None = None, vocab_size: int | None = None
    ) -> None:
        self._saver, self._vocab_size = saver, vocab_size
        self._newest = loaded

    def after_step(self, setup: SavedRun, must_save: bool) -> None:
        """Save if it is time for that; complete a checkpoint that was written meanwhile.

        Raises:
            RuntimeError: a checkpoint could not be written.

        Parallelism: collective over the world.
        """
        self._complete(wait=False)
        interval = setup.config.training_config.save_interval
        iteration = setup.state.iteration
        if must_save or (interval and iteration % interval == 0):
            self._save(setup)

    def at_end(self, setup: SavedRun) -> None:
        """Save the last iteration if that has not been done, and wait until it is written."""
        self._save(setup)
        self._complete(wait=True)

    def finish(self) -> None:
        """Wait until a checkpoint that is being written is complete (collective)."""
        self._complete(wait=True)

    def abandon(self) -> None:
        """Give up a checkpoint that is being written, without other ranks."""
        self._saver.abandon()

    def _save(self, setup: SavedRun) -> None:
        state = setup.state
        if state.iteration in (0, self._newest):
            return
        save_checkpoint(
            self._saver,
            setup.config,
            setup.model,
            setup.optimizer,
            setup.scheduler,
            state,
            self._vocab_size,
        )
        self._newest = state.iteration

    def _complete(self, wait: bool) -> None:
        before = self._saver.last_saved
        if wait:
            self._saver.finish()
        else:
            self._saver.poll()
        saved = self._saver.last_saved
        if saved != before and self._saver.settings.is_async:
            print_rank_0(
                f"  successfully saved checkpoint from iteration {saved:7d} to "
                f"{self._saver.settings.root}"
            )
