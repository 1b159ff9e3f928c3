# SPDX-License-Identifier: Apache-2.0
"""Where a number that is none comes from: which rank made it first, and in what.

A weight is found by looking. An activation is found by repeating the forward of the step with a
check behind every cell; a gradient was looked at before the ranks' gradients were mixed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mindspore import Tensor
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core.distributed import (
    first_bad_gradient,
    first_bad_mean,
    first_bad_weight,
    largest_mean,
)
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel

_NEVER = sys.maxsize
_LARGE = 1e18
"""Squares of norms above overflow fp32 sooner or later, and norms are summed up in fp32."""


def explain(
    models: Sequence[DistributedDataParallel],
    repeat_forward: Callable[[], None] | None = None,
) -> str:
    """Which ranks made the first bad number of a step, and in what, as words.

    Args:
        models: the chunks, after the gradients have been reduced and before they are applied.
        repeat_forward: does the forward of the step again, where that has made a bad loss.

    Parallelism: collective over the world.
    """
    found = _told(first_bad_weight(models), "weight")
    if not found and repeat_forward is not None:
        with _watching(models) as watch:
            repeat_forward()
        # Ranks that share layers go through the same cells: the smallest number was first.
        first = min((number for number, _ in _everyones(watch.made)), default=_NEVER)
        mine = watch.made[1] if watch.made[0] == first != _NEVER else None
        found = _told(mine, "output of")
    if not found:
        found = _told(first_bad_gradient(models), "gradient of")
    if found:
        return f"first in {found}"
    found = _told(first_bad_mean(models), "sum of the gradients of")
    if found:
        return f"no rank made it alone: first in {found}"
    norm, name = max(_everyones(largest_mean(models)))
    if norm > _LARGE:
        return f"the squares of the gradients are too large for fp32, those of {name} most of all"
    return "every number of every rank is finite when looked at again: suspect the hardware"


def _told(mine: str | None, kind: str) -> str:
    """What the ranks have found, "" if nothing."""
    return "; ".join(
        f"rank {rank}: {kind} {name}"
        for rank, name in enumerate(_everyones(mine))
        if name is not None
    )


def _everyones(mine: Any) -> list[Any]:
    return comm.all_gather_object(mine) if comm.get_world_size() > 1 else [mine]


class _Watch:
    """Takes note of the first cell that makes a bad number of good ones."""

    def __init__(self) -> None:
        self.made: tuple[int, str] = (_NEVER, "")
        """Number of the cell in the order of the forward, and its name."""
        self.microbatch = 0
        self._count = 0
        self._is_decided = False

    def hook(self, name: str) -> Callable[[Cell, tuple, Any], None]:
        """A forward hook of a cell."""

        def look(_cell: Cell, inputs: tuple, output: Any) -> None:
            self._count += 1
            if self._is_decided or _is_finite(output):
                return
            # What comes in bad was made elsewhere, on another stage of the pipeline.
            self._is_decided = True
            if _is_finite(inputs):
                self.made = (self._count, f"{name} in micro-batch {self.microbatch + 1}")

        return look

    def count(self, _cell: Cell, _inputs: tuple, _output: Any) -> None:
        """A forward hook of the model: a micro-batch is done."""
        self.microbatch += 1


@contextmanager
def _watching(models: Sequence[DistributedDataParallel]) -> Iterator[_Watch]:
    watch, hooks = _Watch(), []
    for number, model in enumerate(models):
        where = f" (chunk {number})" if len(models) > 1 else ""
        for name, cell in model.module.cells_and_names():
            hooks.append(cell.register_forward_hook(watch.hook((name or "the model") + where)))
    hooks.append(models[0].module.register_forward_hook(watch.count))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _tensors(item)


def _is_finite(values: Any) -> bool:
    return all(
        math.isfinite(ops.l2_norm_squared(memory.contiguous(value)))
        for value in _tensors(values)
        if value.is_floating_point()
    )
