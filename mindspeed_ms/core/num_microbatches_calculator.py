# SPDX-License-Identifier: Apache-2.0
"""How many micro-batches make a training step: constant, ramping up or growing in stages.

The schedules are pure: consumed samples -> global batch size. The functions with Megatron's names
at the end of the file read the calculator of the active run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mindspeed_ms.core import run_state

_SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


class BatchSchedule(Protocol):
    """Global batch size as a function of the samples consumed so far."""

    @property
    def final_size(self) -> int:
        """Size once the schedule has run out, sequences."""

    @property
    def final_from(self) -> int:
        """Consumed samples from which on the size is certainly final."""

    @property
    def fills_last_step(self) -> bool:
        """Whether the last step of a run takes samples beyond its end rather than be left out."""

    def size_at(self, consumed_samples: int) -> int:
        """Return the global batch size of the step that starts after ``consumed_samples``."""


@dataclass(frozen=True, slots=True)
class ConstantBatch:
    """The same global batch throughout."""

    global_batch_size: int
    """Sequences per step over all ranks."""

    @property
    def final_size(self) -> int:
        """The constant size."""
        return self.global_batch_size

    @property
    def final_from(self) -> int:
        """From the start."""
        return 0

    @property
    def fills_last_step(self) -> bool:
        """Samples that fill no step are left."""
        return False

    def size_at(self, consumed_samples: int) -> int:
        """Return the constant size."""
        del consumed_samples
        return self.global_batch_size


@dataclass(frozen=True, slots=True)
class RampupBatch:
    """A global batch that grows by equal increments over equal numbers of samples.

    Raises:
        ValueError: sizes below 1, or a range that is not a multiple of the increment.

    Source: Megatron-LM core 0.8 ``RampupBatchsizeNumMicroBatchesCalculator`` (behaviour).

    """

    start: int
    """First global batch size."""

    increment: int
    """Growth of one stage."""

    samples: int
    """Samples over which the whole growth spreads."""

    global_batch_size: int
    """Size at the end."""

    def __post_init__(self) -> None:
        """Check that the ramp reaches its end exactly."""
        for name in ("start", "increment", "global_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"rampup_batch_size: {name} ({getattr(self, name)}) must be at least 1; raise "
                    "it"
                )
        if self.samples < 0:
            raise ValueError(
                f"rampup_batch_size: samples ({self.samples}) must not be negative; give 0 or more"
            )
        if self.start > self.global_batch_size:
            raise ValueError(
                f"rampup_batch_size: the start ({self.start}) must not exceed global_batch_size "
                f"({self.global_batch_size}); lower it"
            )
        if (self.global_batch_size - self.start) % self.increment:
            raise ValueError(
                f"rampup_batch_size: global_batch_size ({self.global_batch_size}) minus the start "
                f"({self.start}) must be "
                f"a multiple of the increment ({self.increment}); change one of them"
            )

    @property
    def final_size(self) -> int:
        """The size the ramp ends at."""
        return self.global_batch_size

    @property
    def final_from(self) -> int:
        """One sample after the ramp."""
        return self.samples + 1

    @property
    def fills_last_step(self) -> bool:
        """Samples that fill no step are left."""
        return False

    def size_at(self, consumed_samples: int) -> int:
        """Return the size of the stage that ``consumed_samples`` falls in."""
        stages = (self.global_batch_size - self.start) // self.increment
        if consumed_samples > self.samples or stages == 0 or self.samples == 0:
            return self.global_batch_size
        samples_per_stage = self.samples / stages
        return self.start + int(consumed_samples / samples_per_stage) * self.increment


@dataclass(frozen=True, slots=True)
class StepBatch:
    """A global batch that jumps at given numbers of consumed samples.

    Raises:
        ValueError: the first stage does not start at 0, or stages are not in ascending order.

    """

    stages: tuple[tuple[int, int], ...]
    """(first consumed sample, global batch size), ascending."""

    def __post_init__(self) -> None:
        """Check order and sizes."""
        starts = [start for start, _ in self.stages]
        if not starts or starts[0] != 0:
            raise ValueError(
                "step_batch_size_schedule must start at token 0; write its first stage as 0:SIZE"
            )
        if any(later <= earlier for earlier, later in zip(starts, starts[1:], strict=False)):
            raise ValueError(
                f"step_batch_size_schedule has thresholds at samples {starts}, which must ascend; "
                "sort them"
            )
        if min(size for _, size in self.stages) < 1:
            raise ValueError("step_batch_size_schedule has a batch size below 1; give 1 or more")

    @classmethod
    def from_text(cls, text: str, seq_length: int) -> StepBatch:
        """Read ``"0:16 2.4B:320"``: token threshold (suffix K, M, B, T), colon, global batch size.

        Args:
            text: stages separated by spaces.
            seq_length: tokens per sample; thresholds become samples by integer division.

        Raises:
            ValueError: an entry of another form.

        """
        stages = []
        for entry in text.split():
            tokens, _, size = entry.partition(":")
            try:
                stages.append((_tokens(tokens) // seq_length, int(size)))
            except ValueError:
                raise ValueError(
                    f"step_batch_size_schedule entry {entry!r} is not TOKENS:SIZE, as in "
                    "2.4B:320; correct it"
                ) from None
        return cls(tuple(stages))

    @property
    def final_size(self) -> int:
        """Size of the last stage."""
        return self.stages[-1][1]

    @property
    def final_from(self) -> int:
        """Start of the last stage."""
        return self.stages[-1][0]

    @property
    def fills_last_step(self) -> bool:
        """As newer Megatron-LM counts."""
        return True

    def size_at(self, consumed_samples: int) -> int:
        """Return the size of the last stage that has begun."""
        return next(size for start, size in reversed(self.stages) if start <= consumed_samples)


def _tokens(text: str) -> int:
    factor = _SUFFIXES.get(text[-1:].upper(), 1)
    number = text[:-1] if factor > 1 else text
    return round(float(number) * factor)


def make_batch_schedule(
    global_batch_size: int,
    rampup_batch_size: Sequence[int | str] | None = None,
    step_batch_size_schedule: str | None = None,
    seq_length: int | None = None,
) -> BatchSchedule:
    """Return the schedule that the options describe.

    Raises:
        ValueError: two schedules at once, or a malformed one.

    """
    if rampup_batch_size is not None and step_batch_size_schedule is not None:
        raise ValueError(
            "rampup_batch_size and step_batch_size_schedule are both given, but exclude each "
            "other; keep one"
        )
    if step_batch_size_schedule is not None:
        if seq_length is None:
            raise ValueError("step_batch_size_schedule counts tokens and needs seq_length; give it")
        return StepBatch.from_text(step_batch_size_schedule, seq_length)
    if rampup_batch_size is None:
        return ConstantBatch(global_batch_size)
    if len(rampup_batch_size) != 3:
        raise ValueError(
            f"rampup_batch_size has {len(rampup_batch_size)} values, but takes 3: start, "
            "increment, samples"
        )
    start, increment, samples = (int(value) for value in rampup_batch_size)
    return RampupBatch(start, increment, samples, global_batch_size)


class NumMicroBatches:
    """The current global batch and its number of micro-batches on each rank.

    Args:
        schedule: global batch over consumed samples.
        micro_batch_size: sequences in one micro-batch.
        data_parallel_size: model copies.
        decrease_batch_size_if_needed: round a batch down that does not divide, instead of refusing
            it.

    Raises:
        ValueError: a size below 1, or the first or last batch does not divide.

    """

    def __init__(
        self,
        schedule: BatchSchedule,
        micro_batch_size: int,
        data_parallel_size: int,
        decrease_batch_size_if_needed: bool = False,
    ) -> None:
        for name, value in (
            ("micro_batch_size", micro_batch_size),
            ("data_parallel_size", data_parallel_size),
        ):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1; raise it")
        self.schedule = schedule
        self.micro_batch_size = micro_batch_size
        self.data_parallel_size = data_parallel_size
        self.decrease_batch_size_if_needed = decrease_batch_size_if_needed
        self._split(schedule.final_size, is_strict=True)
        self.global_batch_size = 0
        self.num_micro_batches = 0
        self.update(0, consistency_check=False)

    @property
    def running_global_batch_size(self) -> int:
        """Sequences really processed per step.

        That is the global batch, rounded down if this is allowed.
        """
        return self.num_micro_batches * self.micro_batch_size * self.data_parallel_size

    def update(self, consumed_samples: int, consistency_check: bool = True) -> None:
        """Move to the step that starts after ``consumed_samples``.

        Raises:
            ValueError: with ``consistency_check``, a batch that does not divide.

        """
        size = self.schedule.size_at(consumed_samples)
        self.num_micro_batches = self._split(size, is_strict=consistency_check)
        self.global_batch_size = size

    def _split(self, size: int, is_strict: bool) -> int:
        per_round = self.micro_batch_size * self.data_parallel_size
        if size < per_round and (is_strict or self.decrease_batch_size_if_needed):
            raise ValueError(
                f"global batch size ({size}) is smaller than micro batch "
                f"({self.micro_batch_size}) × data-parallel size "
                f"({self.data_parallel_size}) = {per_round}; raise it to {per_round}"
            )
        if is_strict and size % per_round and not self.decrease_batch_size_if_needed:
            below = size // per_round * per_round
            raise ValueError(
                f"global batch size ({size}) must be divisible by micro batch "
                f"({self.micro_batch_size}) × data-parallel "
                f"size ({self.data_parallel_size}) = {per_round}; use {below} or "
                f"{below + per_round}, "
                f"or set decrease_batch_size_if_needed"
            )
        return size // per_round

    def iterations_for(self, train_samples: int, consumed_samples: int = 0) -> int:
        """Return how many steps are left until ``train_samples`` have been consumed."""
        consumed, iterations = consumed_samples, 0
        while consumed < self.schedule.final_from:
            size = self._processed(self.schedule.size_at(consumed))
            if not self._has_step(size, train_samples - consumed):
                return iterations
            consumed += size
            iterations += 1
        left, size = max(0, train_samples - consumed), self._processed(self.schedule.final_size)
        missing = -left % size if self.schedule.fills_last_step else 0
        return iterations + (left + missing) // size

    def consumed_after(self, iterations: int, consumed_samples: int = 0) -> int:
        """Return the samples that have been consumed after so many more steps."""
        consumed = consumed_samples
        while iterations and consumed < self.schedule.final_from:
            consumed += self._processed(self.schedule.size_at(consumed))
            iterations -= 1
        return consumed + iterations * self._processed(self.schedule.final_size)

    def _has_step(self, size: int, samples_left: int) -> bool:
        return samples_left > 0 if self.schedule.fills_last_step else samples_left >= size

    def _processed(self, size: int) -> int:
        """Sequences of a global batch that whole micro-batches on every rank hold."""
        per_round = self.micro_batch_size * self.data_parallel_size
        return max(1, size // per_round) * per_round


# --- Megatron's names: one-line reads of the active run -------------------------------------------


def get_calculator() -> NumMicroBatches:
    """Return the calculator of the active run.

    Raises:
        RuntimeError: it has not been initialized.

    """
    calculator = run_state.current().find(NumMicroBatches)
    if calculator is None:
        raise RuntimeError(
            "the number of micro-batches is not known yet; call "
            "init_num_microbatches_calculator() first"
        )
    return calculator


def init_num_microbatches_calculator(
    rank: int,
    rampup_batch_size: Sequence[int | str] | None,
    global_batch_size: int,
    micro_batch_size: int,
    data_parallel_size: int,
    decrease_batch_size_if_needed: bool = False,
    step_batch_size_schedule: str | None = None,
    seq_length: int | None = None,
) -> None:
    """Create the calculator of the active run. ``rank`` is accepted for Megatron's sake only.

    Raises:
        RuntimeError: there is one already.
        ValueError: sizes that do not fit together.

    """
    del rank
    if run_state.current().find(NumMicroBatches) is not None:
        raise RuntimeError(
            "the number of micro-batches is initialized already; call "
            "destroy_num_microbatches_calculator() first"
        )
    schedule = make_batch_schedule(
        global_batch_size, rampup_batch_size, step_batch_size_schedule, seq_length
    )
    run_state.current().put(
        NumMicroBatches(
            schedule, micro_batch_size, data_parallel_size, decrease_batch_size_if_needed
        )
    )


def destroy_num_microbatches_calculator() -> None:
    """Forget the calculator of the active run."""
    run_state.current().remove(NumMicroBatches)


def get_num_microbatches() -> int:
    """Return the micro-batches of the current step on each rank."""
    return get_calculator().num_micro_batches


def get_current_global_batch_size() -> int:
    """Return the global batch size of the current step."""
    return get_calculator().global_batch_size


def get_current_running_global_batch_size() -> int:
    """Return the sequences the current step really processes."""
    return get_calculator().running_global_batch_size


def get_micro_batch_size() -> int:
    """Return the sequences in one micro-batch."""
    return get_calculator().micro_batch_size


def update_num_microbatches(
    consumed_samples: int, consistency_check: bool = True, verbose: bool = False
) -> None:
    """Move to the step that starts after ``consumed_samples``.

    ``verbose`` is accepted and not used.
    """
    del verbose
    get_calculator().update(consumed_samples, consistency_check)
