# SPDX-License-Identifier: Apache-2.0
"""When the training loop writes checkpoints, and what it does when that fails."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig
from mindspeed_ms.core.dist_checkpointing.live_state import live_tensors
from mindspeed_ms.core.dist_checkpointing.saver import CheckpointSaver, SaveError
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.num_microbatches_calculator import (
    get_num_microbatches,
    update_num_microbatches,
)
from mindspeed_ms.core.optimizer import MegatronOptimizer, OptimizerParamScheduler
from mindspeed_ms.core.timers import timed
from mindspeed_ms.engine.adapters import adapters_of
from mindspeed_ms.engine.checkpointing import Loaded, save_checkpoint
from mindspeed_ms.engine.errors import RunFailure
from mindspeed_ms.engine.health import Health
from mindspeed_ms.engine.observe.observer import Observer
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.engine.train_state import TrainState
from mindspeed_ms.formats import companions, own_format

logger = logging.getLogger(__name__)


class SavedRun(Protocol):
    """What a checkpoint is made of; the training loop has it."""

    config: AllConfig
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    state: TrainState
    health: Health
    observer: Observer

    @property
    def model(self) -> Sequence[DistributedDataParallel]:
        """The chunks of this rank."""


class RunCheckpoints:
    """The checkpoints of a run: at intervals, when it is stopped, and at its end.

    Args:
        saver: writes them.
        loaded: what the run has started from.
        vocab_size: tokens in use, None if unknown.
        on_complete: told the iteration of a checkpoint whose writing in the background is over.

    Parallelism: collective over the world, as are its methods but ``keep``.
    """

    def __init__(
        self,
        saver: CheckpointSaver,
        loaded: Loaded,
        vocab_size: int | None = None,
        on_complete: Callable[[int], None] | None = None,
    ) -> None:
        self._saver, self._vocab_size = saver, vocab_size
        self._on_complete = on_complete
        self._newest, self._base = loaded.saved_already, loaded.base
        self._has_origin = False
        self._num_micro_batches: int | None = None
        # A run that goes on from its newest checkpoint is the same run. From an older one it is
        # another: the later checkpoints are not its own.
        self._run = loaded.continued or uuid.uuid4().hex
        if comm.get_world_size() > 1:
            self._run = comm.broadcast_object(self._run, 0)

    def check_room(self, setup: SavedRun) -> None:
        """Say at the start of a run if the disk has no room for a checkpoint.

        Raises:
            RunFailure: it has none, if that would end the run.
        """
        training = setup.config.training_config
        try:
            self._saver.check_room(
                live_tensors(setup.model, None if training.no_save_optim else setup.optimizer)
            )
        except SaveError as error:
            self._failed(error, training.exit_on_save_failure)

    def before_step(self, setup: SavedRun) -> None:
        """Save what steps of fewer micro-batches have made, before the first one with more.

        Source: Megatron-LM ``train``.

        Raises:
            RunFailure: the checkpoint could not be written, if that ends the run.
        """
        if setup.config.training_config.rampup_batch_size is None:
            return
        before = self._num_micro_batches
        update_num_microbatches(setup.state.consumed_train_samples, consistency_check=False)
        self._num_micro_batches = get_num_microbatches()
        if before not in (None, self._num_micro_batches):
            self._save_during_training(setup, is_due=True, must_save=False)

    def after_step(self, setup: SavedRun, must_save: bool) -> None:
        """Save if it is time for that; complete a checkpoint that was written meanwhile.

        Raises:
            RunFailure: a checkpoint could not be written, if that ends the run.
        """
        training, iteration = setup.config.training_config, setup.state.iteration
        intervals = (
            training.save_interval_at(setup.state.consumed_train_samples),
            training.non_persistent_save_interval,
        )
        is_due = any(steps and iteration % steps == 0 for steps in intervals)
        self._save_during_training(setup, is_due, must_save)

    def at_end(self, setup: SavedRun) -> None:
        """Save the last iteration if that has not been done, and wait until it is written.

        Raises:
            RunFailure: it could not be written.
        """
        try:
            self._save(setup)
            self._complete(wait=True)
        except SaveError as error:
            raise RunFailure(str(error)) from error

    def finish(self) -> None:
        """Wait until a checkpoint that is being written is complete.

        Raises:
            RunFailure: it could not be written.
        """
        try:
            self._complete(wait=True)
        except SaveError as error:
            raise RunFailure(str(error)) from error

    def where(self, iteration: int) -> str:
        """Say where the model of an iteration is, which is the last of the run."""
        root = self._saver.settings.root
        if self._newest == iteration:
            return f"the model is saved: iteration {iteration} in {root}"
        newest = f"the newest checkpoint is of iteration {self._newest}"
        if not self._newest:
            newest = "it has no checkpoint of this run"
        return f"the model of iteration {iteration} is not saved in {root}: {newest}"

    def keep(self, iteration: int | None) -> None:
        """Let the checkpoint of an iteration stay; None: no one in particular."""
        self._saver.kept = iteration

    def _save_during_training(self, setup: SavedRun, is_due: bool, must_save: bool) -> None:
        try:
            self._complete(wait=False)
            if must_save or is_due:
                self._save(setup)
        except SaveError as error:
            ends_run = must_save or setup.config.training_config.exit_on_save_failure
            self._failed(error, ends_run)

    def _failed(self, error: SaveError, ends_run: bool) -> None:
        if ends_run:
            raise RunFailure(str(error)) from error
        if comm.get_rank() == 0:
            logger.warning("%s; training goes on (exit_on_save_failure is off)", error)

    def _save(self, setup: SavedRun) -> None:
        state = setup.state
        if state.iteration in (0, self._newest):
            return
        setup.health.compare_replicas(setup.optimizer, state.iteration, is_saved=True)
        event = None
        if not setup.health.is_sound(setup.optimizer):
            event = setup.health.event or f"weights are no numbers at iteration {state.iteration}"
            print_rank_0(f"  WARNING: the checkpoint is marked as unsound ({event})")
        with timed("save-checkpoint", 0):
            save_checkpoint(
                self._saver,
                setup.config,
                setup.model,
                setup.optimizer,
                setup.scheduler,
                state,
                {
                    own_format.RUN: self._run,
                    own_format.UNHEALTHY: event,
                    "vocab_size": self._vocab_size,
                    **adapters_of(setup.config, self._base),
                },
            )
        self._keep_origin(setup.config)
        self._newest = state.iteration
        setup.observer.after_save(state)

    def _keep_origin(self, config: AllConfig) -> None:
        """Keep what stands beside the hub's model that the run began with, and its tokenizer.

        They are needed on the way to the hub, when the folders they come from may be gone.
        """
        if self._has_origin or comm.get_rank() != 0:
            return
        loaded, root = config.training_config.load_checkpoint, self._saver.settings.root
        origin = companions.origin_of(Path(loaded)) if loaded else None
        if origin is not None:
            companions.keep(origin, root)
        tokenizer = config.dataset_config.tokenizer_model
        if tokenizer is not None and companions.has_tokenizer(Path(tokenizer)):
            companions.keep_tokenizer(Path(tokenizer), root)
        self._has_origin = True

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
            if saved is not None and self._on_complete is not None:
                self._on_complete(saved)
