# SPDX-License-Identifier: Apache-2.0
"""How long a step takes: the schedule of all stages played through with estimated times.

The estimate knows matrix products, bandwidths and the order of passes. It does not know kernels,
so it ranks layouts; it does not promise seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mindspeed_ms.plan.schedule_plan import (
    Backward,
    Forward,
    Shape,
    compute_order,
    needs_input,
    transfer_of,
)


@dataclass(frozen=True, slots=True)
class Device:
    """What one device and its links can do."""

    memory_bytes: float = 64 * 2**30
    tflops: float = 376.0
    """Peak of matrix products in the compute type, 10^12 operations per second."""
    efficiency: float = 0.62
    """Share of the peak that large matrix products reach."""
    node_bytes_per_second: float = 150e9
    """Sent by one device to the others of its host."""
    network_bytes_per_second: float = 25e9
    """Sent by one device to other hosts."""
    ranks_per_node: int = 8
    memory_bytes_per_second: float = 1e12
    """Of the optimizer, which reads and writes its state."""
    pass_seconds: float = 0.0
    """That a layer takes to launch its operators once, whatever their size."""
    host_tflops: float = 0.5
    """Of fp64 matrix products on the host of a device, which optimizers may compute there."""
    cores: int = 0
    """Of one host that all ranks share; 0: every rank has a device of its own."""

    def shared_by(self, ranks: int) -> Device:
        """What one of several ranks has of it: cores that are left over compute faster."""
        return replace(self, tflops=self.tflops * max(1, self.cores // ranks))

    def crowding(self, ranks: int) -> float:
        """Ranks for each core, where there are more ranks than cores; else 1."""
        return max(1.0, ranks / self.cores) if self.cores else 1.0

    def update_seconds(self, state_bytes: float) -> float:
        """Of an optimizer whose state on a rank is read and written once."""
        return 2 * state_bytes / self.memory_bytes_per_second

    def matrix_seconds(self, operations: float, *, on_host: bool) -> float:
        """Of an optimizer's products of matrices; ``on_host``: in fp64, half as fast as fp32."""
        if not on_host:
            return operations / self.operations_per_second
        rate = self.operations_per_second / 2 if self.cores else self.host_tflops * 1e12
        return operations / rate

    @property
    def operations_per_second(self) -> float:
        """Of matrix products in a model."""
        return self.tflops * 1e12 * self.efficiency

    def bandwidth(self, span: int) -> float:
        """Bytes per second between ranks whose group covers ``span`` consecutive ranks."""
        inside = span <= self.ranks_per_node
        return self.node_bytes_per_second if inside else self.network_bytes_per_second


@dataclass(frozen=True, slots=True)
class PassSeconds:
    """Seconds of one micro-batch in one chunk of a stage."""

    forward: float
    backward: float
    early: float = 0.0
    """Of the backward, before its gradient has to be there."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Result of playing a schedule through."""

    seconds: float
    busy: tuple[float, ...]
    """Seconds each stage computes."""

    @property
    def bubble(self) -> float:
        """Share of the time in which the stages wait, averaged over them."""
        return 1.0 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0


def play(
    shape: Shape, passes: Sequence[Sequence[PassSeconds]], transfer_seconds: float = 0.0
) -> Timeline:
    """Run the passes of all stages in their order, each as soon as its input has arrived.

    Args:
        shape: the schedule.
        passes: seconds by stage and chunk.
        transfer_seconds: from the end of a pass to the arrival of its result.
    """
    orders = [compute_order(shape, stage) for stage in range(shape.stages)]
    position = [0] * shape.stages
    clock = [0.0] * shape.stages
    busy = [0.0] * shape.stages
    arrival: dict[tuple[bool, int, int, int], float] = {}
    waiting = list(range(shape.stages))
    while waiting:
        advanced = False
        for stage in waiting:
            order = orders[stage]
            while position[stage] < len(order):
                step = order[position[stage]]
                is_forward = isinstance(step, Forward)
                ready = 0.0
                if needs_input(shape, stage, step):
                    found = arrival.pop((is_forward, stage, step.chunk, step.microbatch), None)
                    if found is None:
                        break
                    ready = found
                cost = passes[stage][step.chunk]
                seconds = cost.backward if isinstance(step, Backward) else cost.forward
                early = 0.0 if is_forward else cost.early
                clock[stage] = max(clock[stage] + early, ready) + seconds - early
                busy[stage] += seconds
                sent = transfer_of(shape, stage, step)
                if sent is not None:
                    key = (is_forward, sent.destination, sent.destination_chunk, step.microbatch)
                    arrival[key] = clock[stage] + transfer_seconds
                position[stage] += 1
                advanced = True
        assert advanced, f"the order of passes of {shape} cannot be carried out"
        waiting = [stage for stage in waiting if position[stage] < len(orders[stage])]
    return Timeline(max(clock), tuple(busy))


def play_long(
    shape: Shape, passes: Sequence[Sequence[PassSeconds]], transfer_seconds: float = 0.0
) -> Timeline:
    """As ``play``, with the repeating middle of a long step added instead of played."""
    unit = max(shape.group, shape.stages)
    few = 4 * unit
    if shape.microbatches <= few + unit:
        return play(shape, passes, transfer_seconds)
    few += shape.microbatches % unit
    short = Shape(shape.stages, few, shape.chunks, shape.group_size)
    played = play(short, passes, transfer_seconds)
    rest = shape.microbatches - few
    each = [sum(part.forward + part.backward for part in stage) for stage in passes]
    return Timeline(
        played.seconds + rest * max(each),
        tuple(busy + rest * more for busy, more in zip(played.busy, each, strict=True)),
    )
