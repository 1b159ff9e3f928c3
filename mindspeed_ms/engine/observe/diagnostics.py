# SPDX-License-Identifier: Apache-2.0
"""Looks that are taken on request: sudden losses and gradients, attention scores, slow ranks.

Source: Megatron-LM ``RerunStateMachine.is_unexpectedly_large`` (factor 10, over 100 values) and
``StragglerDetector`` (what is told, and when).
"""

from __future__ import annotations

import logging
import math
import platform
import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.comm import CommCall, ReduceOp
from mindspeed_ms.config import TrainingConfig
from mindspeed_ms.core.distributed import largest_mean
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.optimizer import MegatronOptimizer
from mindspeed_ms.legacy.model.attention import CoreAttention

logger = logging.getLogger(__name__)

FACTOR = 10.0
"""So many times the largest of the values before is sudden."""
REMEMBERED = 100
"""Values before that count."""
_LAYER = re.compile(r".*?layers\.\d+")
_LOWEST = float(np.finfo(np.float32).min)


class Sudden:
    """Tells values that are far above those before; these do not become the new usual."""

    def __init__(self) -> None:
        self._before: deque[float] = deque(maxlen=REMEMBERED)

    def usual(self, value: float) -> float | None:
        """The largest value before, if this one is far above it, else None."""
        if not np.isfinite(value):
            return None  # another watch tells of those
        largest = max(self._before, default=None)
        if largest is not None and value > FACTOR * largest:
            return largest
        self._before.append(value)
        return None


def _everyones(mine: Any) -> list[Any]:
    return comm.all_gather_object(mine) if comm.get_world_size() > 1 else [mine]


def _warn(text: str) -> None:
    if comm.get_rank() == 0:
        logger.warning("%s", text)


class SpikyLoss:
    """Names losses that are far above those before, and where in the batch they are."""

    def __init__(self) -> None:
        self._sudden: dict[str, Sudden] = {}

    def look(
        self,
        iteration: int,
        losses: Mapping[str, float],
        reports: Sequence[Mapping[str, tuple[Any, Any]]],
    ) -> None:
        """Look at the losses of an iteration.

        Args:
            iteration: its number.
            losses: by name, equal on all ranks.
            reports: sums and counts of this rank's micro-batches, on the last stage.

        Parallelism: collective over the world when a loss is sudden.
        """
        for name, value in losses.items():
            usual = self._sudden.setdefault(name, Sudden()).usual(value)
            if usual is not None:
                where = _largest_microbatch(name, reports)
                _warn(
                    f"iteration {iteration}: {name} is {value:.6g}, the largest of the iterations "
                    f"before was {usual:.6g}; {where}"
                )


def _largest_microbatch(name: str, reports: Sequence[Mapping[str, tuple[Any, Any]]]) -> str:
    means = [float(report[name][0]) / max(float(report[name][1]), 1.0) for report in reports]
    mine = max(((mean, number) for number, mean in enumerate(means, 1)), default=None)
    value, rank, number = max(
        (one[0], -rank, one[1]) for rank, one in enumerate(_everyones(mine)) if one is not None
    )
    return f"most of all in micro-batch {number} of rank {-rank}, {value:.6g}"


class LargeGrads:
    """Names gradients that are far above those before, and the parameter that has the largest."""

    def __init__(self) -> None:
        self._sudden = Sudden()

    def look(
        self, iteration: int, norm: float | None, models: Sequence[DistributedDataParallel]
    ) -> None:
        """Look at the gradients of an iteration.

        Args:
            iteration: its number.
            norm: of all gradients, equal on all ranks; None: the step was skipped.
            models: the chunks of this rank, whose gradients are still there.

        Parallelism: collective over the world when the norm is sudden.
        """
        usual = None if norm is None else self._sudden.usual(norm)
        if usual is not None:
            size, name = max(_everyones(largest_mean(models)))
            _warn(
                f"iteration {iteration}: the norm of the gradients is {norm:.6g}, the largest of "
                f"the iterations before was {usual:.6g}; most of all {name}, {size:.6g}"
            )


class AttentionLogits:
    """Largest score of all attentions, before the softmax.

    Args:
        chunks: the model of this rank.
    """

    def __init__(self, chunks: Sequence[Cell]) -> None:
        self._noted: list[Tensor] = []
        self._cells: list[CoreAttention] = []
        for chunk in chunks:
            for _, cell in chunk.cells_and_names():
                if isinstance(cell, CoreAttention):
                    cell.max_logits = memory.full((cell.num_heads,), _LOWEST)
                    self._cells.append(cell)
                    self._noted.append(cell.max_logits)

    def taken(self) -> float | None:
        """The largest since the last call; None where no attention notes it.

        Parallelism: collective over the world.
        """
        tops = [float(memory.as_numpy(one).max()) for one in self._noted]
        self.forget()
        largest = memory.from_numpy(np.array([max(tops, default=_LOWEST)], np.float32))
        if comm.get_world_size() > 1:
            comm.all_reduce(largest, op=ReduceOp.MAX)
        value = float(memory.as_numpy(largest)[0])
        return None if value == _LOWEST else value

    def forget(self) -> None:
        """Begin again, as behind an evaluation."""
        for one in self._noted:
            memory.copy_from_host(one, np.full(one.shape, _LOWEST, np.float32))

    def end(self) -> None:
        """Let the attentions note nothing any more."""
        for cell in self._cells:
            cell.max_logits = None


def layer_norms(optimizer: MegatronOptimizer) -> dict[str, float]:
    """L2 norm of the parameters of every layer, and of each parameter outside of layers.

    Parallelism: collective over the world.
    """
    squares: dict[str, float] = {}
    for mine in _everyones(optimizer.squares_by_parameter()):
        for name, square in mine.items():
            layer = _LAYER.match(name)
            key = layer.group(0) if layer else name
            squares[key] = squares.get(key, 0.0) + square
    return {name: math.sqrt(square) for name, square in sorted(squares.items(), key=_place)}


def _place(item: tuple[str, float]) -> tuple[str, int]:
    """Layers in the order of their numbers."""
    stem, _, number = item[0].rpartition(".")
    return (stem, int(number)) if number.isdecimal() else (item[0], -1)


class Diagnostics:
    """Those that the configuration asks for.

    Args:
        training: the flags.
        models: the chunks of this rank.
        optimizer: of the run.
        clips_scores: attention scores are noted for ``QkClip``.
    """

    def __init__(
        self,
        training: TrainingConfig,
        models: Sequence[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        clips_scores: bool = False,
    ) -> None:
        self._models, self._optimizer = models, optimizer
        self._spiky = SpikyLoss() if training.check_for_spiky_loss else None
        self._large = LargeGrads() if training.check_for_large_grads else None
        self._logits = self._stragglers = None
        self._with_layers = training.log_params_norm_per_layer
        if training.log_max_attention_logit or clips_scores:
            self._logits = AttentionLogits([model.module for model in models])
        if training.log_straggler:
            self._stragglers = Stragglers(training.straggler_minmax_count)

    def begin_step(self) -> None:
        """An iteration is about to run."""
        if self._stragglers is not None:
            self._stragglers.begin_step()
        if self._logits is not None:
            self._logits.forget()

    def look(
        self,
        iteration: int,
        losses: Mapping[str, float],
        reports: Sequence[Mapping[str, tuple[Any, Any]]],
        norm: float | None,
    ) -> None:
        """Look at losses and gradients; see ``SpikyLoss`` and ``LargeGrads`` (collective)."""
        if self._spiky is not None:
            self._spiky.look(iteration, losses, reports)
        if self._large is not None:
            self._large.look(iteration, norm, self._models)

    def max_attention_logit(self) -> float | None:
        """The largest attention score of the iteration (collective); None if nobody asks."""
        return None if self._logits is None else self._logits.taken()

    def end_step(self, seconds: float) -> None:
        """An iteration is over."""
        if self._stragglers is not None:
            self._stragglers.end_step(seconds)

    def at_line(self, iteration: int) -> tuple[list[str], dict[str, float]]:
        """Lines for the log, and figures (collective)."""
        lines: list[str] = []
        figures: dict[str, float] = {}
        if self._stragglers is not None:
            lines += self._stragglers.lines(iteration)
        if self._with_layers:
            norms = layer_norms(self._optimizer)
            lines.append(f"params norm by layer at iteration {iteration}")
            lines += [
                f"    {(name + ' ').ljust(60, '.')}: {norm:.3f}" for name, norm in norms.items()
            ]
            figures |= {f"params-norm/{name}": norm for name, norm in norms.items()}
        return lines, figures

    def end(self) -> None:
        """Look no more."""
        if self._stragglers is not None:
            self._stragglers.end()
        if self._logits is not None:
            self._logits.end()
        self._stragglers = self._logits = None


class Stragglers:
    """Tells for every rank how long it computes and how long it waits for others.

    Args:
        count: so many of the slowest and of the fastest ranks are named.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._waited = self._before = self._in_steps = self._total = 0.0
        self._steps = 0
        comm.start_recording(self._take)

    def _take(self, call: CommCall) -> None:
        self._waited += call.end - call.blocked

    def begin_step(self) -> None:
        """What was communicated between iterations does not count."""
        self._before = self._waited

    def end_step(self, seconds: float) -> None:
        """An iteration took this long."""
        self._in_steps += self._waited - self._before
        self._total += seconds
        self._steps += 1

    def lines(self, iteration: int) -> list[str]:
        """The report since the last one (collective)."""
        waited, steps = self._in_steps, max(self._steps, 1)
        mine = (platform.node(), (self._total - waited) / steps, waited / steps)
        self._total, self._in_steps, self._steps = 0.0, 0.0, 0
        return straggler_lines(iteration, _everyones(mine), self._count)

    def end(self) -> None:
        """Stop listening."""
        comm.stop_recording()


def straggler_lines(
    iteration: int, ranks: Sequence[tuple[str, float, float]], count: int
) -> list[str]:
    """The report.

    Args:
        iteration: where the run stands.
        ranks: host, seconds of computing and seconds of communication per iteration.
        count: ranks that are named at either end.
    """
    lines = [f"straggler report at iteration {iteration} (ms per iteration)"]
    lines += [
        f"  rank {rank} ({host}): computing {1e3 * compute:.1f}, waiting for others and for data "
        f"on its way {1e3 * waiting:.1f}"
        for rank, (host, compute, waiting) in enumerate(ranks)
    ]
    median = float(np.median([compute for _, compute, _ in ranks]))
    order = sorted(range(len(ranks)), key=lambda rank: ranks[rank][1], reverse=True)

    def named(some: Sequence[int]) -> str:
        return ", ".join(
            f"rank {rank} ({ranks[rank][1] / median - 1.0:+.1%} of the median)" for rank in some
        )

    lines.append(f"  slowest: {named(order[:count])}")
    lines.append(f"  fastest: {named(order[::-1][:count])}")
    return lines
