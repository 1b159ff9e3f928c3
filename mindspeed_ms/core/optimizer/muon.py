# SPDX-License-Identifier: Apache-2.0
"""Muon: matrices are updated by orthogonal ones.

Legend: a matrix W is [out, in]; X is what Newton-Schulz steps make orthogonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import OptimizerConfig
from mindspeed_ms.config.optimizer_config import NEWTON_SCHULZ, STATES
from mindspeed_ms.core.optimizer.update_rules import Hyper
from mindspeed_ms.core.parameter import ShardSpec, shard_of

EPS = 1e-7
"""Smallest norm that is divided by."""

Coefficients = Sequence[tuple[float, float, float]]


class Muon:
    """Moment of the gradient, made orthogonal, times the learning rate.

    m = b m + (1 - b) grad; W = (1 - lr decay) W - lr s O(m), with O the nearest orthogonal matrix
    by Newton-Schulz steps and s the factor of ``muon_scale_mode``. What is elementwise runs on
    whatever part of the matrix a rank owns; ``orthogonal`` wants the whole of its tensor parallel
    part.

    Source: Jordan et al., 2024; Liu et al., 2025 (decay and scale); Megatron-core ``muon``
    (behaviour under tensor parallelism).
    """

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config
        self.state_names = STATES[config.algorithm]
        self._steps = coefficients(config.muon_coefficient_type, config.muon_num_ns_steps)

    def accumulate(
        self, main: Tensor, grad: Tensor, state: Mapping[str, Tensor], hyper: Hyper
    ) -> None:
        """Decay, take the gradient into the moment, and leave in ``grad`` what is made orthogonal.

        Args:
            main: fp32 parameters, flat, like all others.
            grad: gradients; replaced.
            state: the moment.
            hyper: of this step.
        """
        beta = self.config.muon_momentum
        ops.scale_(grad, hyper.grad_scale)
        if hyper.weight_decay and self.config.decoupled_weight_decay:
            ops.scale_(main, 1.0 - hyper.lr * hyper.weight_decay)
        elif hyper.weight_decay:
            ops.axpy_(grad, main, hyper.weight_decay)
        moment = state["momentum_buffer"]
        ops.scale_(moment, beta)
        ops.axpy_(moment, grad, 1.0 - beta)
        if self.config.muon_nesterov:
            ops.scale_(grad, 1.0 - beta)
            ops.axpy_(grad, moment, beta)
        else:
            ops.copy_cast_(grad, moment)

    def turned(self, param: Parameter, matrix: Tensor, group: Group, step: int) -> Tensor:
        """``orthogonal`` of a parameter's moment."""
        return self.orthogonal(matrix, shard_of(param), group)

    def orthogonal(self, matrix: Tensor, shard: ShardSpec, group: Group) -> Tensor:
        """The orthogonal matrix of a moment; both [out, in] as this rank holds them.

        Args:
            matrix: the moment.
            shard: how it is a part of a whole matrix.
            group: the tensor parallel ranks of its kind.

        Parallelism: collective over ``group`` unless ``muon_tp_mode`` is blockwise.
        """
        sizes = shard.row_blocks if self.config.muon_split_qkv else ()
        if not sizes:
            return self._orthogonal(matrix, shard, group)
        with autograd.no_grad():
            period, columns = sum(sizes), matrix.shape[1]
            grouped = matrix.reshape((-1, period, columns))
            done, start = [], 0
            for size in sizes:
                block = grouped[:, start : start + size].reshape((-1, columns))
                result = self._orthogonal(memory.contiguous(block), shard, group)
                done.append(memory.permuted(result.reshape((-1, size, columns)), (1, 0, 2)))
                start += size
            return memory.permuted(memory.concatenated(done), (1, 0, 2)).reshape(matrix.shape)

    def update(
        self,
        main: Tensor,
        part: Tensor,
        state: Mapping[str, Tensor],
        lr: float,
        scale: float,
    ) -> None:
        """Take a step along the orthogonal matrix.

        Args:
            main: parameters that this rank owns, flat.
            part: the same elements of what ``orthogonal`` made of the matrix.
            state: of the parameters.
            lr: learning rate.
            scale: factor on what a second moment has divided.
        """
        if "moment2_buffer" in state:
            root = self.config.adaptive_muon_beta2, self.config.adaptive_muon_eps
            ops.divide_by_root_(part, state["moment2_buffer"], *root)
            ops.scale_(part, scale)
        ops.axpy_(main, part, -lr)

    def scale_of(self, shape: Sequence[int], shard: ShardSpec) -> float:
        """Factor on an orthogonal matrix of this local shape."""
        rows, columns = shape
        if self._is_whole_wanted(shard):
            rows, columns = (
                size * (shard.partitions if dim == shard.partition_dim else 1)
                for dim, size in enumerate(shape)
            )
        ratio = {
            "spectral": float(max(rows, columns)),
            "unit_rms_norm": rows / columns,
            "shape_scaling": max(1.0, rows / columns),
        }[self.config.muon_scale_mode]
        return math.sqrt(ratio) * self.config.muon_extra_scale_factor

    def _is_whole_wanted(self, shard: ShardSpec) -> bool:
        return (
            shard.partition_dim >= 0
            and shard.partitions > 1
            and self.config.muon_tp_mode != "blockwise"
        )

    def _orthogonal(self, matrix: Tensor, shard: ShardSpec, group: Group) -> Tensor:
        """Of one block of rows; Muon's scale depends on the size of the block.

        With a second moment the division comes first, and takes away any scale.
        """
        rounds = self.config.muon_fp32_matmul_prec != "high"
        if not self._is_whole_wanted(shard):
            result = newton_schulz(matrix, self._steps, rounds=rounds)
        elif self.config.muon_tp_mode == "distributed":
            is_tall = shard.partition_dim == 0
            result = newton_schulz(
                matrix, self._steps, rounds=rounds, is_tall=is_tall, total=_summed(group, rounds)
            )
        else:
            result = self._of_gathered(matrix, shard.partition_dim, group, rounds)
        if self.config.algorithm == "muon":
            ops.scale_(result, self.scale_of(matrix.shape, shard))
        return result

    def _of_gathered(self, matrix: Tensor, dim: int, group: Group, rounds: bool) -> Tensor:
        """This rank's part of the whole matrix's result; every rank computes all of it."""
        rows, columns = matrix.shape
        parts = memory.empty((group.size, rows, columns))
        comm.all_gather_into_tensor(parts, matrix, group)
        with autograd.no_grad():
            # Ranks' rows in rank order are the whole matrix up to a permutation of rows (columns),
            # which Newton-Schulz steps pass through.
            if dim == 1:
                parts = memory.permuted(parts, (1, 0, 2))
            whole = parts.reshape(
                (group.size * rows, columns) if dim == 0 else (rows, group.size * columns)
            )
            result = newton_schulz(whole, self._steps, rounds=rounds)
            if dim == 0:
                return memory.contiguous(result[group.rank * rows : (group.rank + 1) * rows])
            start = group.rank * columns
            return memory.contiguous(result[:, start : start + columns])


def coefficients(kind: str, steps: int) -> Coefficients:
    """(a, b, c) of every step; the last of ``polar_express`` is repeated, others start again."""
    known = NEWTON_SCHULZ[kind]
    if kind == "polar_express":
        return (*known, *[known[-1]] * (steps - len(known)))
    return tuple(known[index % len(known)] for index in range(steps))


def newton_schulz(
    matrix: Tensor,
    steps: Coefficients,
    *,
    rounds: bool,
    is_tall: bool | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """A matrix with the same singular vectors and singular values near 1.

    Args:
        matrix: [out, in], fp32; not changed.
        steps: coefficients of the steps.
        rounds: round every product to bf16.
        is_tall: form products over the rows; None: if there are more rows than columns.
        total: sums a tensor over the ranks that hold parts of the matrix, cut along the dimension
            that products are formed over; None: this rank holds all of it.
    """
    tall = matrix.shape[0] > matrix.shape[1] if is_tall is None else is_tall
    squares = ops.l2_norm_squared(matrix)
    if total is not None:
        squares = float(memory.as_numpy(total(memory.full((1,), squares)))[0])
    x = memory.empty(matrix.shape)
    ops.copy_cast_(x, matrix)
    ops.scale_(x, 1.0 / max(math.sqrt(squares), EPS))
    x = _rounded(x, rounds)
    for a, b, c in steps:
        gram = ops.linear_wgrad(x, x) if tall else ops.linear_forward(x, x)
        gram = _rounded(gram, rounds)
        if total is not None:
            gram = total(gram)
        product = ops.linear_dgrad(gram, gram)
        ops.scale_(product, c)
        ops.axpy_(product, gram, b)
        product = _rounded(product, rounds)
        following = ops.linear_dgrad(x, product) if tall else ops.linear_dgrad(product, x)
        ops.axpy_(following, x, a)
        x = _rounded(following, rounds)
    return x


def _rounded(x: Tensor, rounds: bool) -> Tensor:
    """To bf16 and back: products of such numbers are exact in fp32, only their sums are rounded."""
    if rounds:
        narrow = memory.empty(x.shape, mstype.bfloat16)
        ops.copy_cast_(narrow, x)
        ops.copy_cast_(x, narrow)
    return x


def _summed(group: Group, rounds: bool) -> Callable[[Tensor], Tensor]:
    def total(tensor: Tensor) -> Tensor:
        comm.all_reduce(tensor, group=group)
        return _rounded(tensor, rounds and tensor.ndim > 1)

    return total
