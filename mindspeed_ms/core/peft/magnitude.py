# SPDX-License-Identifier: Apache-2.0
"""Trained lengths of the rows of adapted matrices: Y *= m / |W + s B A|, row by row.

The lengths below the line are taken as constants in backward.

Source: Liu et al., 2024 (DoRA), section 4.3; PEFT's ``use_dora`` (behaviour).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.core.parameter import make_ready
from mindspeed_ms.core.peft.adapter import Adapter, Adapters


class _Magnified(autograd.Function):
    """Y [..., o] times g [o], where g is m / length at adapted outputs and 1 elsewhere."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, lengths: np.ndarray, rows: list[np.ndarray], *magnitudes: Parameter
    ) -> Tensor:
        factors = np.ones(y.shape[-1], np.float32)
        for places, magnitude in zip(rows, magnitudes, strict=True):
            held = places >= 0
            values = memory.as_numpy(memory.contiguous(_exact(make_ready(magnitude))))
            factors[held] = values[places[held]] / lengths[held]
        ctx.factors = ops.cast(memory.from_numpy(factors), y.dtype)
        ctx.lengths, ctx.rows = lengths, rows
        ctx.kinds = [(magnitude.shape, magnitude.dtype) for magnitude in magnitudes]
        ctx.save_for_backward(y)
        return y * ctx.factors

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        by_output = memory.as_numpy(_exact(ops.bias_grad(memory.contiguous(grad * y))))
        grads = []
        for places, (shape, kind) in zip(ctx.rows, ctx.kinds, strict=True):
            held = places >= 0
            mine = np.zeros(tuple(shape), np.float32)
            mine[places[held]] = by_output[held] / ctx.lengths[held]
            grads.append(ops.cast(memory.from_numpy(mine), kind))
        return grad * ctx.factors, None, None, *grads


def _exact(t: Tensor) -> Tensor:
    return ops.cast(t, mstype.float32)


def magnified(y: Tensor, adapters: Adapters, weight: Parameter) -> Tensor:
    """What a layer with adapters returns, with its rows scaled to their trained lengths.

    Args:
        y: output [..., o] without bias.
        adapters: of the layer.
        weight: of the layer.
    """
    if not adapters.has_magnitudes or not adapters.enabled:
        return y
    each = adapters.each
    lengths = row_lengths(adapters, weight)
    magnitudes = [one.magnitude for one in each]
    return _Magnified.apply(y, lengths, [one.rows for one in each], *magnitudes)


def row_lengths(adapters: Adapters, weight: Parameter, *, alone: bool = False) -> np.ndarray:
    """Lengths of the rows of W + s B A, fp32 [o]; summed over ranks that split the inputs.

    ``alone``: of those of W, before the adapters have values.
    """
    with autograd.no_grad():
        rows = memory.as_numpy(memory.contiguous(_exact(make_ready(weight))))
        if not alone:
            product = ops.linear_dgrad(adapters.spread_up(), _exact(adapters.stacked_down()))
            rows = rows + memory.as_numpy(memory.contiguous(product))
    squares = np.einsum("oi,oi->o", rows, rows)
    if adapters.plans.split == "row" and adapters.group.size > 1:
        total = memory.from_numpy(squares)
        comm.all_reduce(total, group=adapters.group)
        squares = memory.as_numpy(total)
    return np.sqrt(squares).astype(np.float32)


def set_magnitudes(cell: Cell) -> None:
    """Begin with the lengths that the rows of the frozen matrices have."""
    for layer in cell.cells():
        set_magnitudes(layer)
    adapters = getattr(cell, "adapters", None)
    if not isinstance(adapters, Adapters) or not adapters.has_magnitudes:
        return
    # B is 0 at the beginning, and may not be written yet.
    lengths = row_lengths(adapters, cell.weight, alone=True)
    for one in adapters.each:
        _fill(one, lengths, adapters)


def _fill(adapter: Adapter, lengths: np.ndarray, adapters: Adapters) -> None:
    held = adapter.rows >= 0
    values = np.zeros(tuple(adapter.magnitude.shape), np.float32)
    values[adapter.rows[held]] = lengths[held]
    filled = memory.from_numpy(values)
    if int(held.sum()) < values.size:  # ranks that share a group of heads have some each
        comm.all_reduce(filled, group=adapters.group)
    ops.copy_cast_(adapter.magnitude, filled)
