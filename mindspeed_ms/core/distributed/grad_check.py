# SPDX-License-Identifier: Apache-2.0
"""Numbers that are none: in which of a rank's parameters or gradients they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from mindspore import Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.distributed.param_and_grad_buffer import OptimizerShard
from mindspeed_ms.plan.param_layout import Piece


def is_finite(flat: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    # Squares of fp32 numbers cannot overflow the fp64 sum: it is finite when all elements are.
    return math.isfinite(ops.l2_norm_squared(flat))


def first_bad_weight(models: Sequence[DistributedDataParallel]) -> str | None:
    """Name of the first parameter that is not finite in what this rank holds; None: all are."""
    for model in models:
        for buffer in model.buffers:
            if is_finite(buffer.params.flat):
                continue
            pieces = (name for shard in buffer.shards for name in _bad_pieces(shard, shard.params))
            whole = (name for name, param in buffer.parameters if not is_finite(param))
            return next(pieces, None) or next(whole, None)
    return None


def first_bad_gradient(models: Sequence[DistributedDataParallel]) -> str | None:
    """Name of the first parameter, in the order of the backward, whose gradient this rank spoilt.

    Args:
        models: the chunks after ``finish_grad_sync``, built with ``check_for_nan_in_grad``.
    """
    for model in models:
        if model.bad_gradient is not None:
            return model.bad_gradient
    own = (shard for model in models for shard in model.shards if not shard.reduction.mixes_ranks)
    return next((name for shard in own for name in _bad_pieces(shard, shard.grads)), None)


def first_bad_mean(models: Sequence[DistributedDataParallel]) -> str | None:
    """Name of the first parameter whose reduced gradient is not finite, whoever spoilt it."""
    shards = (shard for model in models for shard in model.shards)
    return next((name for shard in shards for name in _bad_pieces(shard, shard.grads)), None)


def largest_mean(models: Sequence[DistributedDataParallel]) -> tuple[float, str]:
    """Norm and name of the reduced gradient, or part of one on this rank, that is the largest."""
    return max(
        (
            (math.sqrt(ops.l2_norm_squared(_part(shard.grads, piece))), piece.name)
            for model in models
            for shard in model.shards
            for _, piece in shard.pieces
        ),
        default=(0.0, ""),
    )


def _part(flat: Tensor, piece: Piece) -> Tensor:
    return memory.view_of(flat, piece.start, (piece.size,))


def _bad_pieces(shard: OptimizerShard, flat: Tensor) -> Iterator[str]:
    if is_finite(flat):
        return
    for _, piece in shard.pieces:
        if not is_finite(_part(flat, piece)):
            yield piece.name
