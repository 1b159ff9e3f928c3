# SPDX-License-Identifier: Apache-2.0
"""``auto_parallel``: the layout that the planner finds fastest.

Pure, like the planner: no rank is started and nothing is built.
"""

from __future__ import annotations

from mindspeed_ms.config import AllConfig
from mindspeed_ms.planning.suggest import suggest


def choose_layout(config: AllConfig, world_size: int) -> tuple[AllConfig, str]:
    """The same model, batch and length in the fastest layout that fits.

    Returns:
        The configuration, and the line that tells the choice.

    Raises:
        ValueError: nothing fits the memory of a device.
    """
    if world_size == 1:
        return config, "auto_parallel on 1 rank: there is nothing to choose"
    best = suggest(config, world_size, count=1)[0]
    plan = best.plan
    return plan.config, (
        f"auto_parallel on {world_size} ranks: {best.flags} "
        f"(planned {plan.step_seconds:.3g} s a step, {plan.bytes_at_peak / 2**30:.1f} GiB)"
    )
