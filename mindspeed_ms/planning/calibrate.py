# SPDX-License-Identifier: Apache-2.0
"""One measured run makes the estimates those of its machine.

All times of a plan are inversely proportional to the rates of the device, so one factor on all of
them makes the estimate of the measured run equal to what was measured. What the plan knows about
other layouts then carries over: how work, traffic, waiting and launching relate.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mindspeed_ms.config import AllConfig
from mindspeed_ms.planning.plan import make_plan
from mindspeed_ms.planning.timing import Device

WARM_UP = 2
"""First steps of a run, which build what later ones use."""
LEAST_STEPS = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run says about its machine.

    Attributes:
        config: of the run.
        world_size: its ranks.
        seconds: of its steps, in their order.
        is_cpu: whether its ranks were processes that shared cores.
        cores: of the host.
    """

    config: AllConfig
    world_size: int
    seconds: Sequence[float]
    is_cpu: bool
    cores: int

    @property
    def step_seconds(self) -> float:
        """The middle one of its steps behind the first ones.

        Raises:
            ValueError: there are too few.
        """
        steady = self.seconds[WARM_UP:]
        if len(steady) < LEAST_STEPS:
            raise ValueError(
                f"the run has {len(self.seconds)} steps, of which the first {WARM_UP} warm up; to "
                f"calibrate it takes {LEAST_STEPS} more: train at least {WARM_UP + LEAST_STEPS}"
            )
        return statistics.median(steady)


def cpu_device(cores: int, memory_bytes: float) -> Device:
    """A host whose cores run the ranks, with relations fitted to eight layouts on two cores.

    In terms of what a plan counts: exchanges copy and wait, and an optimizer step passes over more
    than its state, so these rates are below those of the memory.

    Args:
        cores: of the host.
        memory_bytes: of the host, which ranks share.
    """
    return Device(
        memory_bytes=memory_bytes,
        tflops=0.234,
        efficiency=1.0,
        node_bytes_per_second=0.70e9,
        network_bytes_per_second=0.70e9,
        memory_bytes_per_second=0.75e9,
        pass_seconds=2.19e-3,
        cores=cores,
    )


def calibrated(base: Device, run: Measured) -> tuple[Device, str]:
    """A device whose plan of a run takes as long as the run did, and a line about it.

    Args:
        base: the relations of rates; of a run on CPU those of ``cpu_device`` are taken.
        run: what was measured.

    Raises:
        ValueError: the run has too few steps, or cannot be planned.
    """
    if run.is_cpu:
        base = cpu_device(run.cores, base.memory_bytes)
    measured = run.step_seconds
    planned = make_plan(run.config, run.world_size, base).step_seconds
    factor = planned / measured
    device = replace(
        base,
        tflops=base.tflops * factor,
        host_tflops=base.host_tflops * factor,
        node_bytes_per_second=base.node_bytes_per_second * factor,
        network_bytes_per_second=base.network_bytes_per_second * factor,
        memory_bytes_per_second=base.memory_bytes_per_second * factor,
        pass_seconds=base.pass_seconds / factor,
    )
    return device, (
        f"rates of the measured run, whose step took {measured:.4g} s on {run.world_size} ranks: "
        f"{factor:.3g} times those of {'such a host' if run.is_cpu else 'the usual device'}"
    )
