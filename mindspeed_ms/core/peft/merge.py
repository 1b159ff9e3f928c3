# SPDX-License-Identifier: Apache-2.0
"""Adapters put into their frozen matrices, and taken out again without a trace."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mindspore import Parameter
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.core.parameter import make_ready
from mindspeed_ms.core.peft.adapter import Adapters
from mindspeed_ms.core.peft.magnitude import row_lengths


def adapted_layers(cell: Cell) -> Iterator[tuple[Parameter, Adapters]]:
    """(matrix, its adapters) of every adapted layer of a model."""
    for _, layer in cell.cells_and_names():
        adapters = getattr(layer, "adapters", None)
        if isinstance(adapters, Adapters):
            yield layer.weight, adapters


def merge(model: Cell) -> None:
    """Make the matrices W + s B A (times m / length with magnitudes), and use no adapters then.

    The bits of the matrices are kept beside them. What is merged already stays so.
    """
    for weight, adapters in adapted_layers(model):
        if not adapters.enabled:
            continue
        adapters.kept = memory.empty(weight.shape, weight.dtype)
        ops.copy_cast_(adapters.kept, weight)
        merged = _merged(weight, adapters)
        ops.copy_cast_(weight, memory.from_numpy(merged))
        adapters.enabled = False


def unmerge(model: Cell) -> None:
    """Give the matrices the bits they had before ``merge``, and use the adapters again."""
    for weight, adapters in adapted_layers(model):
        if adapters.kept is not None:
            ops.copy_cast_(weight, adapters.kept)
            adapters.kept, adapters.enabled = None, True


def _merged(weight: Parameter, adapters: Adapters) -> np.ndarray:
    with autograd.no_grad():
        up = ops.cast(adapters.spread_up(), mstype.float32)
        down = ops.cast(adapters.stacked_down(), mstype.float32)
        added = memory.as_numpy(memory.contiguous(ops.linear_dgrad(up, down)))
        held = memory.contiguous(ops.cast(make_ready(weight), mstype.float32))
    result = memory.as_numpy(held) + added
    if adapters.has_magnitudes:
        lengths = row_lengths(adapters, weight)
        for one in adapters.each:
            mine = one.rows >= 0
            exact = memory.contiguous(ops.cast(make_ready(one.magnitude), mstype.float32))
            factors = memory.as_numpy(exact)[one.rows[mine]] / lengths[mine]
            result[mine] *= factors[:, None]
    return np.ascontiguousarray(result, np.float32)
