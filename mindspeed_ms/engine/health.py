# SPDX-License-Identifier: Apache-2.0
"""Whether the numbers of a run are sound: a step that makes NaN or infinity is an event.

It is named, whatever the flags: what is not a number, in which iteration, on which rank, in which
parameter or activation. ``check_for_nan_in_grad`` decides whether it ends the run. If not, the
checkpoints that hold its consequences are marked, so that none of them displaces a sound one.

Replicas of the weights that have left one another are no less unsound, and end every run.

With a loss scale, gradients that overflow are part of the method: the step is skipped. Only when
that does not end is it an event.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

from mindspeed_ms.backend import comm
from mindspeed_ms.core.distributed.replica_check import require_equal_replicas
from mindspeed_ms.core.optimizer import MegatronOptimizer
from mindspeed_ms.core.optimizer.clip_grads import any_over
from mindspeed_ms.engine.errors import RunFailure
from mindspeed_ms.engine.first_bad_number import explain

logger = logging.getLogger(__name__)

ENDLESS_SKIPS = 50
"""Skipped steps in a row that are an event: a dynamic scale has come down from 2**32 by then."""

ADVICE = (
    "lower the learning rate, check the data, or pass --no-check-for-nan-in-loss-and-grad (YAML: "
    "check_for_nan_in_grad: False) to go on"
)


class Health:
    """The events of a run.

    Args:
        stops: whether an event ends the run.
        compare_every: iterations between comparisons of replicas; 0: they are never compared.
    """

    def __init__(self, stops: bool, compare_every: int = 0) -> None:
        self._stops = stops
        self._compare_every = compare_every
        self._compared = 0
        self._is_last_bad = False
        self._skips = 0
        self.event: str | None = None
        """The event that began the present series, or the last one."""

    def watch(
        self,
        iteration: int,
        losses: Mapping[str, float],
        norm: float,
        where: Callable[[bool], str],
    ) -> None:
        """Judge the losses and the norm of the gradients of a step, before it changes weights.

        Args:
            iteration: number of the step, from 1.
            losses: by name, equal on all ranks.
            norm: of all gradients, equal on all ranks.
            where: (whether a loss is bad) -> where it comes from; collective over the world.

        Raises:
            RunFailure: an event, if it ends the run.
        """
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        if not bad and math.isfinite(norm):
            if self._is_last_bad:
                self._say(f"iteration {iteration}: loss and gradients are numbers again")
            self._is_last_bad = False
            return
        is_new, self._is_last_bad = not self._is_last_bad, True
        if not is_new:
            return  # the consequences of one event are not further ones
        what = f"{bad[0]} is {losses[bad[0]]}" if bad else f"the norm of the gradients is {norm}"
        self._happened(f"iteration {iteration}: {what}, {where(bool(bad))}")

    def note_step(self, iteration: int, is_skipped: bool, optimizer: MegatronOptimizer) -> None:
        """Note whether a step was skipped.

        Raises:
            RunFailure: all of the last ``ENDLESS_SKIPS`` were, if an event ends the run.
        """
        self._skips = self._skips + 1 if is_skipped else 0
        if self._skips and self._skips % ENDLESS_SKIPS == 0:
            self._happened(
                f"iteration {iteration}: the last {self._skips} steps were skipped, and the loss "
                f"scale is {optimizer.loss_scale:g}: gradients overflow all the same, "
                f"{explain(optimizer.models)}"
            )

    def compare_replicas(
        self, optimizer: MegatronOptimizer, iteration: int, is_saved: bool = False
    ) -> None:
        """Compare the weights of all data parallel replicas, if it is time for that.

        Args:
            optimizer: has the weights.
            iteration: the last one.
            is_saved: whether they are about to be saved, so that it is time whatever the interval.

        Raises:
            RunFailure: a replica differs.

        Parallelism: collective over the world.
        """
        every = self._compare_every
        if not every or iteration == self._compared or (iteration % every and not is_saved):
            return
        self._compared = iteration
        try:
            require_equal_replicas(optimizer.models, iteration)
        except RuntimeError as error:
            raise RunFailure(str(error)) from error

    def is_sound(self, optimizer: MegatronOptimizer) -> bool:
        """Whether what a checkpoint would hold is sound.

        Parallelism: collective over the world.
        """
        is_bad = self._is_last_bad or not optimizer.is_finite()
        return not any_over(is_bad, comm.world_group())

    def _happened(self, event: str) -> None:
        self.event = event
        if self._stops:
            raise RunFailure(f"{event}; {ADVICE}")
        self._say(f"{event}; the run goes on, its checkpoints are marked as long as they hold it")

    def _say(self, text: str) -> None:
        if comm.get_rank() == 0:
            logger.warning("%s", text)
