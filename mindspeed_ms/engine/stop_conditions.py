# SPDX-License-Identifier: Apache-2.0
"""Why a run ends before its last iteration."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mindspeed_ms.backend import comm
from mindspeed_ms.config import TrainingConfig

logger = logging.getLogger(__name__)


class StopConditions:
    """Signal, duration, file and interval at which all ranks leave in the same iteration.

    With ``exit_signal_handler`` the signal no longer ends the process: the run finishes its
    iteration and saves. A second one ends it at once.

    Args:
        training: the conditions.
        started: when the time that counts began, in seconds since the epoch.
    """

    def __init__(self, training: TrainingConfig, started: float) -> None:
        self._training = training
        self._began = time.monotonic() - (time.time() - started)  # clocks are set while runs last
        self._is_signalled = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Context in which the signal is a condition; outside it does what it did before."""
        if not self._training.exit_signal_handler:
            yield
            return
        awaited = signal.Signals[self._training.exit_signal]
        previous = signal.getsignal(awaited) or signal.SIG_DFL

        def on_signal(number: int, frame: FrameType | None) -> None:
            del number, frame
            self._is_signalled = True
            signal.signal(awaited, previous)

        signal.signal(awaited, on_signal)
        try:
            yield
        finally:
            signal.signal(awaited, previous)

    def switched_off(self) -> str | None:
        """The line of a run that its file ends; None to go on.

        Parallelism: collective over the world if there can be a file: ranks look at it at
        different moments.
        """
        path = self._training.kill_switch_path
        if path is None or not any(comm.all_gather_object(os.path.exists(path))):
            return None
        return f"exiting program, as {path} is there"

    def reason(self, iteration: int) -> str | None:
        """What ends the run now, as Megatron's line; None to go on.

        Parallelism: collective over the world if a signal or a duration can end the run: clocks
        differ between ranks, and a signal may reach only some of them.
        """
        training = self._training
        switch = self.switched_off()
        if switch is not None:
            return switch
        limit = training.exit_duration_in_mins
        if training.exit_signal_handler or limit is not None:
            minutes = (time.monotonic() - self._began) / 60.0
            states = comm.all_gather_object((self._is_signalled, minutes))
            if any(is_signalled for is_signalled, _ in states):
                return f"exiting program after receiving {training.exit_signal}."
            longest = max(minutes for _, minutes in states)
            if limit is not None and longest > limit:
                return f"exiting program after {longest} minutes"
        is_interval = training.exit_interval and iteration % training.exit_interval == 0
        if is_interval or iteration in (training.phase_transition_iterations or ()):
            return f"exiting program at iteration {iteration}"
        return None
