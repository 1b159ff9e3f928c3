# SPDX-License-Identifier: Apache-2.0
"""The order of work of every pipeline stage, as data.

Nothing here computes or communicates: ``plan`` maps (stage, stages, micro-batches, chunks) to the
ordered steps of one rank. The executor runs them, the timeline tool draws them, and the tests
execute the plans of all ranks against each other.

Legend: stage = pipeline rank; chunk = one of the model parts of a stage (virtual stages); virtual
stage = chunk * stages + stage, the order in which a micro-batch passes the parts.

**Order of passes.** Each stage first runs warm-up forwards, then alternates forward and backward,
then drains backwards (Narayanan et al., 2021). With several chunks, groups of
``group_size`` micro-batches go through chunk 0, then chunk 1, and so on.

**Transfers.** Passes of all stages are laid out in rounds: in a round each stage runs its next pass
if the input has arrived. What a round produces travels at its end, in one ``Exchange`` per rank
that sends or receives. So the exchanges of all ranks have a common order, and even if every
exchange blocked until all its transfers were complete no rank could wait in a circle. Between two
ranks tensors arrive in the order in which they are sent, so transfers need no tags.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

ACTIVATION: Literal["activation"] = "activation"
GRADIENT: Literal["gradient"] = "gradient"


@dataclass(frozen=True, slots=True)
class Forward:
    """Forward of one micro-batch through one chunk."""

    chunk: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class Backward:
    """Backward of one micro-batch through one chunk."""

    chunk: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor that goes from one stage to another.

    An activation is the output of the source's chunk and the input of the destination's; a gradient
    goes the other way.
    """

    kind: Literal["activation", "gradient"]
    microbatch: int
    source: int
    source_chunk: int
    destination: int
    destination_chunk: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """Transfers that a rank starts together, after what it sends has been computed."""

    sends: tuple[Transfer, ...]
    receives: tuple[Transfer, ...]


Step: TypeAlias = Forward | Backward | Exchange
Pass: TypeAlias = Forward | Backward


@dataclass(frozen=True, slots=True)
class Shape:
    """What determines the plans of a step.

    Raises:
        ValueError: counts that no schedule exists for.
    """

    stages: int
    microbatches: int
    chunks: int = 1
    group_size: int | None = None
    """Micro-batches a chunk runs before the next chunk takes over; None: the number of stages."""
    forward_only: bool = False

    def __post_init__(self) -> None:
        if min(self.stages, self.microbatches, self.chunks) < 1:
            raise ValueError(
                f"a schedule got {self.stages} stages, {self.microbatches} micro-batches and "
                f"{self.chunks} chunks; each must be at least 1"
            )
        if self.chunks > 1:
            self._check_groups()

    def _check_groups(self) -> None:
        if self.stages < 2:
            raise ValueError(
                f"{self.chunks} model chunks need at least 2 pipeline stages, given {self.stages}; "
                "use one chunk"
            )
        group, rest = self.group, self.microbatches % self.group
        if not self.stages <= group <= self.microbatches:
            raise ValueError(
                f"micro-batches per group and virtual stage ({group}) must lie between the "
                f"pipeline stages ({self.stages}) and the micro-batches of a step "
                f"({self.microbatches}); set --microbatch-group-size-per-virtual-pipeline-stage "
                "or a larger global batch"
            )
        if 0 < rest < self.stages:
            raise ValueError(
                f"{self.microbatches} micro-batches in groups of {group} leave a last group of "
                f"{rest}, fewer than the {self.stages} pipeline stages; use a multiple of "
                f"{self.stages} micro-batches, or set "
                "--microbatch-group-size-per-virtual-pipeline-stage so that at least "
                f"{self.stages} remain"
            )

    @property
    def group(self) -> int:
        """Micro-batches of a full group."""
        return self.stages if self.group_size is None else self.group_size

    @property
    def passes(self) -> int:
        """Forward passes of one stage."""
        return self.microbatches * self.chunks


def forward_order(shape: Shape) -> list[tuple[int, int]]:
    """(micro-batch, chunk) of each forward, the same on every stage.

    A backward takes the same micro-batches through the chunks in reverse.
    """
    if shape.chunks == 1:
        return [(microbatch, 0) for microbatch in range(shape.microbatches)]
    order = []
    for first in range(0, shape.microbatches, shape.group):
        group = range(first, min(first + shape.group, shape.microbatches))
        order += [(microbatch, chunk) for chunk in range(shape.chunks) for microbatch in group]
    return order


def num_warmup_forwards(shape: Shape, stage: int) -> int:
    """Forwards a stage runs before its first backward pairs with a forward.

    Source: Megatron-LM core 0.12 ``get_pp_rank_microbatches`` (formula).
    """
    if shape.forward_only:
        return shape.passes
    if shape.chunks == 1:
        warmup = shape.stages - stage - 1
    else:
        warmup = 2 * (shape.stages - stage - 1) + (shape.chunks - 1) * shape.group
    return min(warmup, shape.passes)


def compute_order(shape: Shape, stage: int) -> list[Pass]:
    """The passes of one stage, in order: warm-up, steady state, cool-down."""
    order = forward_order(shape)
    forwards = [Forward(chunk, microbatch) for microbatch, chunk in order]
    if shape.forward_only:
        return list(forwards)
    backwards = [Backward(shape.chunks - 1 - chunk, microbatch) for microbatch, chunk in order]
    warmup = num_warmup_forwards(shape, stage)
    steady = shape.passes - warmup
    passes: list[Pass] = list(forwards[:warmup])
    for index in range(steady):
        passes += (forwards[warmup + index], backwards[index])
    return passes + backwards[steady:]


def transfer_of(shape: Shape, stage: int, done: Pass) -> Transfer | None:
    """What a stage sends after a pass; None at the ends of the model."""
    forward = isinstance(done, Forward)
    position = done.chunk * shape.stages + stage
    target = position + (1 if forward else -1)
    if not 0 <= target < shape.stages * shape.chunks or shape.stages == 1:
        return None
    chunk, destination = divmod(target, shape.stages)
    return Transfer(
        kind=ACTIVATION if forward else GRADIENT,
        microbatch=done.microbatch,
        source=stage,
        source_chunk=done.chunk,
        destination=destination,
        destination_chunk=chunk,
    )


def needs_input(shape: Shape, stage: int, coming: Pass) -> bool:
    """True when a pass uses a tensor of another stage."""
    position = coming.chunk * shape.stages + stage
    end = 0 if isinstance(coming, Forward) else shape.stages * shape.chunks - 1
    return position != end


class _Rounds:
    """Lays the passes of all stages out in rounds; see the module's text."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.orders = [compute_order(shape, stage) for stage in range(shape.stages)]
        self.steps: list[list[Step]] = [[] for _ in range(shape.stages)]
        self.done = [0] * shape.stages
        self.arrived: set[tuple[str, int, int, int]] = set()
        """(kind, stage, chunk, micro-batch) of inputs that can be used from the next round on."""

    def run(self) -> tuple[tuple[Step, ...], ...]:
        """Steps of every stage."""
        while any(done < len(order) for done, order in zip(self.done, self.orders, strict=True)):
            moved = self._run_passes()
            assert moved is not None, f"the order of passes of {self.shape} cannot be carried out"
            self._exchange(moved)
        return tuple(tuple(steps) for steps in self.steps)

    def _run_passes(self) -> list[Transfer] | None:
        """One pass on every stage that can; what they send. None: nobody could."""
        moved, any_ran = [], False
        for stage, order in enumerate(self.orders):
            if self.done[stage] == len(order):
                continue
            coming = order[self.done[stage]]
            if needs_input(self.shape, stage, coming):
                kind = ACTIVATION if isinstance(coming, Forward) else GRADIENT
                key = (kind, stage, coming.chunk, coming.microbatch)
                if key not in self.arrived:
                    continue
                self.arrived.remove(key)
            any_ran = True
            self.done[stage] += 1
            self.steps[stage].append(coming)
            transfer = transfer_of(self.shape, stage, coming)
            if transfer is not None:
                moved.append(transfer)
        return moved if any_ran else None

    def _exchange(self, moved: list[Transfer]) -> None:
        sends: dict[int, list[Transfer]] = {}
        receives: dict[int, list[Transfer]] = {}
        for transfer in moved:
            sends.setdefault(transfer.source, []).append(transfer)
            receives.setdefault(transfer.destination, []).append(transfer)
            self.arrived.add(
                (
                    transfer.kind,
                    transfer.destination,
                    transfer.destination_chunk,
                    transfer.microbatch,
                )
            )
        for stage in sends.keys() | receives.keys():
            self.steps[stage].append(
                Exchange(tuple(sends.get(stage, ())), tuple(receives.get(stage, ())))
            )


@lru_cache(maxsize=8)
def plans(shape: Shape) -> tuple[tuple[Step, ...], ...]:
    """The plans of all stages."""
    return _Rounds(shape).run()


def plan(shape: Shape, stage: int) -> tuple[Step, ...]:
    """The ordered steps of one stage.

    Raises:
        ValueError: a stage outside the pipeline.
    """
    if not 0 <= stage < shape.stages:
        raise ValueError(
            f"stage is {stage}; it must be within 0..{shape.stages - 1} for {shape.stages} stages"
        )
    return plans(shape)[stage]


def peak_in_flight(steps: tuple[Step, ...]) -> int:
    """Most forwards of a stage whose backward is still to come: what its activations cost."""
    alive = peak = 0
    for step in steps:
        if isinstance(step, Forward):
            alive += 1
            peak = max(peak, alive)
        elif isinstance(step, Backward):
            alive -= 1
    return peak
