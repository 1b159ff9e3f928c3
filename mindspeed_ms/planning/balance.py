# SPDX-License-Identifier: Apache-2.0
"""Pipeline balancing: layers per stage and recomputation that make a step shortest within a memory.

From the memory that some stages used in a measured run and from the time of the parts of the model,
an integer program finds how many layers each model chunk holds and how many of them recompute.

With n layers, of which R are recomputed whole, S by selected operators and C by communication, f
forwards in flight: memory of a stage is

    constant + sum over its chunks of n * static + f * (n * kept - R * d_R - S * d_S - C * d_C)

plus the head's on the first stage and the tail's on the last. A layer can be selected and repeat
its communication, but not be recomputed whole beside either: R + S <= n, R + C <= n.

Source: the balancing tool of MindFormers 1.5 (input format, memory model); the solver is SciPy's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, lsq_linear, milp

from mindspeed_ms.plan.schedule_plan import Backward, Shape, compute_order
from mindspeed_ms.planning.timing import PassSeconds, Timeline, play_long

KINDS = ("recompute", "select_recompute", "select_comm_recompute")
"""Whole layers, selected operators, communication."""

REPEATED: Mapping[str, float] = MappingProxyType(
    {"recompute": 1.0, "select_recompute": 0.2, "select_comm_recompute": 0.05}
)
"""Share of a layer's forward that each kind repeats, where ``time_config`` does not state it."""

BACKWARD = 2.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run whose stages' memory was read.

    Attributes:
        layers: by chunk and stage.
        recomputed: kind -> layers by chunk and stage.
        stages: numbers of stages whose memory is given; none of them the first or the last.
        memories: theirs, MiB.
    """

    layers: np.ndarray
    recomputed: Mapping[str, np.ndarray]
    stages: tuple[int, ...]
    memories: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be balanced.

    Attributes:
        num_layers: layers of the model.
        stages: pipeline stages.
        chunks: model chunks per stage.
        microbatches: of a step.
        memory: limit of a stage, MiB.
        head_time: forward of the embedding and what else the first stage has, any unit of time.
        body_time: forward of one layer.
        tail_time: forward of the head and the loss.
        head_memory: MiB on the first stage.
        tail_memory: MiB on the last stage.
        repeated: kind -> share of a layer's forward it repeats; kinds that may be used.
    """

    num_layers: int
    stages: int
    chunks: int
    microbatches: int
    memory: float
    head_time: float
    body_time: float
    tail_time: float
    head_memory: float
    tail_memory: float
    repeated: Mapping[str, float]

    @property
    def shape(self) -> Shape:
        """The schedule."""
        return Shape(self.stages, self.microbatches, self.chunks)


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """MiB, fitted to the measured runs.

    Attributes:
        static: weights, gradients and optimizer state of a layer.
        kept: activations of a layer and micro-batch.
        saved: kind -> what it saves of that.
        constant: of every stage.
    """

    static: float
    kept: float
    saved: Mapping[str, float]
    constant: float


@dataclass(frozen=True, slots=True)
class Balance:
    """A solution."""

    problem: Problem
    layers: np.ndarray
    """By chunk and stage."""
    recomputed: Mapping[str, np.ndarray]
    timeline: Timeline
    memories: tuple[float, ...]
    """By stage, MiB."""

    @property
    def offsets(self) -> np.ndarray:
        """Layers beyond the even share, by chunk and stage."""
        return self.layers - self.problem.num_layers // (self.problem.stages * self.problem.chunks)


def forwards_in_flight(shape: Shape, stage: int) -> np.ndarray:
    """By chunk: forwards in flight when a stage has the most of all chunks together."""
    alive = np.zeros(shape.chunks, int)
    most = alive.copy()
    for step in compute_order(shape, stage):
        alive[step.chunk] += -1 if isinstance(step, Backward) else 1
        if alive.sum() > most.sum():
            most = alive.copy()
    return most


def fit_memory(runs: Sequence[Measured], kinds: Sequence[str], microbatches: int) -> MemoryModel:
    """Fit the memory model to measured stages, in the least squares, all parts non-negative.

    Args:
        runs: one or several; together they need as many different stages as there are unknowns
            (static, kept, a saving per kind that occurs, and the constant where there are enough).
        kinds: kinds of recomputation that may be used.
        microbatches: of a step of the measured runs.

    Raises:
        ValueError: too few stages to tell the parts apart.
    """
    rows, targets = [], []
    for run in runs:
        chunks, stages = run.layers.shape
        shape = Shape(stages, max(microbatches, 2 * stages), chunks)
        for stage, memory in zip(run.stages, run.memories, strict=True):
            flight = forwards_in_flight(shape, stage)
            row = [run.layers[:, stage].sum(), flight @ run.layers[:, stage]]
            row += [-(flight @ run.recomputed[kind][:, stage]) for kind in kinds]
            rows.append([float(item) for item in (*row, 1)])
            targets.append(memory)
    table, wanted = np.array(rows), np.array(targets)
    columns = table.shape[1]
    if np.linalg.matrix_rank(table) < columns:
        table = table[:, :-1]  # leave the constant out
    if np.linalg.matrix_rank(table) < table.shape[1]:
        raise ValueError(
            f"memory_usage gives {len(targets)} stages, too few or too alike to tell the memory of "
            f"a layer, its activations and {len(kinds)} kinds of recomputation apart; measure "
            f"{columns} middle stages, with other recompute lists or in several rounds"
        )
    found = lsq_linear(table, wanted, bounds=(0, np.inf)).x
    saved = dict(zip(kinds, found[2 : 2 + len(kinds)], strict=True))
    constant = found[columns - 1] if table.shape[1] == columns else 0.0
    return MemoryModel(float(found[0]), float(found[1]), saved, float(constant))


class _Program:
    """The integer program. Variables: layers, then layers of each kind, then the longest stage."""

    def __init__(self, problem: Problem, model: MemoryModel) -> None:
        self.problem, self.model = problem, model
        self.kinds = tuple(problem.repeated)
        self.places = problem.stages * problem.chunks
        self.size = self.places * (1 + len(self.kinds)) + 1
        self.rows: list[np.ndarray] = []
        self.lower: list[float] = []
        self.upper: list[float] = []

    def index(self, kind: int, chunk: int, stage: int) -> int:
        """Column of a count; kind -1: layers."""
        return (kind + 1) * self.places + chunk * self.problem.stages + stage

    def add(self, row: np.ndarray, low: float, high: float) -> None:
        """Demand low <= row · x <= high."""
        self.rows.append(row)
        self.lower.append(low)
        self.upper.append(high)

    def stage_time(self, stage: int) -> tuple[np.ndarray, float]:
        """Forward and backward of all chunks of a stage: (row, constant)."""
        problem = self.problem
        row = np.zeros(self.size)
        for chunk in range(problem.chunks):
            row[self.index(-1, chunk, stage)] = (1 + BACKWARD) * problem.body_time
            for kind, share in enumerate(problem.repeated.values()):
                row[self.index(kind, chunk, stage)] = share * problem.body_time
        ends = problem.head_time * (stage == 0) + problem.tail_time * (stage == problem.stages - 1)
        return row, (1 + BACKWARD) * ends

    def memory_row(self, stage: int) -> np.ndarray:
        """Memory of a stage without what does not depend on the counts."""
        row = np.zeros(self.size)
        flight = forwards_in_flight(_short(self.problem.shape), stage)
        for chunk, count in enumerate(flight):
            row[self.index(-1, chunk, stage)] = self.model.static + count * self.model.kept
            for kind, name in enumerate(self.kinds):
                row[self.index(kind, chunk, stage)] = -count * self.model.saved[name]
        return row

    def fixed_memory(self, stage: int) -> float:
        """Memory of a stage that no count changes."""
        problem = self.problem
        is_last = stage == problem.stages - 1
        ends = problem.head_memory * (stage == 0) + problem.tail_memory * is_last
        return self.model.constant + ends

    def constrain(self) -> None:
        """State all demands."""
        problem = self.problem
        total = np.zeros(self.size)
        total[: self.places] = 1
        self.add(total, problem.num_layers, problem.num_layers)
        for stage in range(problem.stages):
            row, ends = self.stage_time(stage)
            row[-1] = -1
            self.add(row, -np.inf, -ends)
            free = problem.memory - self.fixed_memory(stage)
            self.add(self.memory_row(stage), -np.inf, free)
            for chunk in range(problem.chunks):
                self._limit_kinds(chunk, stage)

    def _limit_kinds(self, chunk: int, stage: int) -> None:
        for kind, name in enumerate(self.kinds):
            row = np.zeros(self.size)
            row[self.index(kind, chunk, stage)] = 1
            row[self.index(-1, chunk, stage)] = -1
            if name != "recompute" and "recompute" in self.kinds:
                row[self.index(self.kinds.index("recompute"), chunk, stage)] = 1
            self.add(row, -np.inf, 0)

    def solve(self, seconds: float) -> np.ndarray:
        """The counts, by kind (layers first), chunk and stage.

        Raises:
            ValueError: no counts fit into the memory.
        """
        self.constrain()
        problem = self.problem
        goal = sum((self.stage_time(stage)[0] for stage in range(problem.stages)), np.zeros(1))
        goal = goal / problem.chunks
        goal[-1] = problem.microbatches - 1
        low, high = np.zeros(self.size), np.full(self.size, np.inf)
        low[: self.places] = 1
        whole = np.ones(self.size)
        whole[-1] = 0
        result = milp(
            goal,
            constraints=LinearConstraint(np.array(self.rows), self.lower, self.upper),
            bounds=Bounds(low, high),
            integrality=whole,
            options={"time_limit": seconds},
        )
        if result.x is None:
            raise ValueError(
                f"no distribution of {problem.num_layers} layers over {problem.stages} stages and "
                f"{problem.chunks} chunks fits into {problem.memory:.0f} MiB; allow more memory, "
                "more stages, or further kinds of recomputation"
            )
        counts = np.rint(result.x[:-1]).astype(int)
        return counts.reshape(1 + len(self.kinds), problem.chunks, problem.stages)


def _short(shape: Shape) -> Shape:
    """A schedule whose start is the same, with few micro-batches."""
    unit = 3 * shape.stages
    return Shape(shape.stages, min(shape.microbatches, unit), shape.chunks, shape.group_size)


def balance(problem: Problem, model: MemoryModel, seconds: float = 90.0) -> Balance:
    """Solve.

    Args:
        problem: what is to be balanced.
        model: memory of its parts.
        seconds: time the solver may take.

    Raises:
        ValueError: nothing fits.
    """
    program = _Program(problem, model)
    counts = program.solve(seconds)
    recomputed = dict(zip(program.kinds, counts[1:], strict=True))
    flat = np.append(counts.ravel(), 0)
    return Balance(
        problem=problem,
        layers=counts[0],
        recomputed=recomputed,
        timeline=timeline_of(problem, counts[0], recomputed),
        memories=tuple(
            float(program.memory_row(stage) @ flat + program.fixed_memory(stage))
            for stage in range(problem.stages)
        ),
    )


def timeline_of(
    problem: Problem, layers: np.ndarray, recomputed: Mapping[str, np.ndarray]
) -> Timeline:
    """The step of a distribution, played through."""
    passes = []
    for stage in range(problem.stages):
        parts = []
        for chunk in range(problem.chunks):
            forward = layers[chunk, stage] * problem.body_time
            forward += problem.head_time * (stage == 0 and chunk == 0)
            is_end = stage == problem.stages - 1 and chunk == problem.chunks - 1
            forward += problem.tail_time * is_end
            again = sum(
                recomputed[kind][chunk, stage] * share * problem.body_time
                for kind, share in problem.repeated.items()
            )
            parts.append(PassSeconds(forward, BACKWARD * forward + again))
        passes.append(parts)
    return play_long(problem.shape, passes)


def bubble_parts(found: Balance) -> dict[str, float]:
    """The step's excess over perfectly shared work, as shares of it.

    ``real = ideal + imbalance + recompute``: what the schedule costs with equal stages, what the
    stages' differences add, and what recomputation adds.
    """
    problem = found.problem
    work = problem.head_time + problem.num_layers * problem.body_time + problem.tail_time
    shared = problem.microbatches * (1 + BACKWARD) * work / problem.stages
    nothing = {kind: np.zeros_like(found.layers) for kind in problem.repeated}
    plain = timeline_of(problem, found.layers, nothing).seconds
    ideal = (problem.stages - 1) / (problem.microbatches * problem.chunks)
    return {
        "real": found.timeline.seconds / shared - 1,
        "ideal": ideal,
        "imbalance": plain / shared - 1 - ideal,
        "recompute": (found.timeline.seconds - plain) / shared,
    }


def as_rows(counts: np.ndarray) -> list[Any]:
    """Counts as ``num_layer_list`` writes them: one row without chunks, else a row per chunk."""
    rows = counts.tolist()
    return rows[0] if len(rows) == 1 else rows
