# SPDX-License-Identifier: Apache-2.0
"""Norms of what an optimizer keeps, over all ranks.

Source: Megatron-DeepSpeed ``training_log`` (names; which norms).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core.optimizer.flat_state import StatePart

_NAMES: Mapping[str, str] = {
    "exp_avg_sq": "variance",
    "exp_avg": "momentum",
    "momentum_buffer": "momentum",
}
"""States that have curves; those that a rule does not keep have none."""


def state_figures(parts: Iterable[tuple[StatePart, int]]) -> dict[str, float]:
    """Curves of moments and weights: ``optimizer/variance_l2``, ``optimizer/weight_abs_max``, ...

    Args:
        parts: what this rank keeps of parameters that norms count here, and how many ranks keep
            and count the same.

    Parallelism: collective over the world.
    """
    squares: dict[str, float] = defaultdict(float)
    sums: dict[str, float] = defaultdict(float)
    largest: dict[str, float] = defaultdict(float)
    for part, copies in parts:
        kept = {_NAMES[name]: one for name, one in part.state.items() if name in _NAMES}
        for name, tensor in {**kept, "weight": part.main_param}.items():
            values = memory.as_numpy(tensor).astype(np.float64)
            several = {name: values}
            if name == "variance":
                several["variance_sqrt"] = np.sqrt(values)
            for own, array in several.items():
                squares[own] += float(array @ array) / copies
                sums[own] += float(np.abs(array).sum()) / copies
                largest[own] = max(largest[own], float(np.abs(array).max(initial=0.0)))
    everyones = comm.all_gather_object((dict(squares), dict(sums), dict(largest)))
    figures: dict[str, float] = {}
    for name in sorted({name for parts_of, _, _ in everyones for name in parts_of}):
        each = [[one.get(name, 0.0) for one in rank] for rank in everyones]
        total, absolute, most = zip(*each, strict=True)
        figures[f"optimizer/{name}_l2"] = float(sum(total)) ** 0.5
        figures[f"optimizer/{name}_l1"] = float(sum(absolute))
        figures[f"optimizer/{name}_abs_max"] = max(most)
    return figures
