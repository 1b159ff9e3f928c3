# SPDX-License-Identifier: Apache-2.0
"""SOAP: Adam in the eigenbasis of Shampoo's preconditioners.

Legend: a matrix W is [m, n], G its gradient, A [m, m] and B [n, n] the preconditioners of its rows
and columns, P and Q their eigenbases (columns, the largest eigenvalue first).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import OptimizerConfig
from mindspeed_ms.config.optimizer_config import SOAP_STATES
from mindspeed_ms.core.optimizer.update_rules import Hyper
from mindspeed_ms.core.parameter import ShardSpec, shard_of

Array = np.ndarray
NOISE = 1e-6
"""Share of the largest eigenvalue below which fp32 gradients say nothing."""


class Soap:
    """W = (1 - lr decay) W - lr P adam(P^T G Q) Q^T.

    Every rank that owns a part of a matrix keeps the states of the whole of it, over tensor
    parallel ranks too, and computes the same: the numbers do not depend on the layout, and a
    checkpoint holds each state once. Eigenvectors are found on the host, in fp64.

    Source: Vyas et al., 2024 (SOAP); Lin et al., 2025 (KL-Shampoo); NVIDIA Emerging-Optimizers
    (behaviour: order of the steps, what is sorted).
    """

    state_names: tuple[str, ...] = ()
    """Of an element; see ``whole_state``."""

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config
        self._kept: dict[int, dict[str, Tensor]] = {}

    def hold(self, param: Parameter) -> None:
        """Keep the states of a matrix, [m, n], [m, m] and [n, n], from now on."""
        rows, columns = shard_of(param).full_shape(param.shape)
        shapes = (rows, columns), (rows, rows), (columns, columns)
        self._kept[id(param)] = {
            name: memory.zeros(shapes[SOAP_STATES[name]]) for name in SOAP_STATES
        }

    def whole_state(self, param: Parameter) -> Mapping[str, Tensor]:
        """States of a whole matrix; none where it is not held."""
        return self._kept.get(id(param), {})

    def accumulate(
        self, main: Tensor, grad: Tensor, state: Mapping[str, Tensor], hyper: Hyper
    ) -> None:
        """Decay, and scale the gradient; see ``Muon.accumulate``."""
        ops.scale_(grad, hyper.grad_scale)
        if hyper.weight_decay and self.config.decoupled_weight_decay:
            ops.scale_(main, 1.0 - hyper.lr * hyper.weight_decay)
        elif hyper.weight_decay:
            ops.axpy_(grad, main, hyper.weight_decay)

    def turned(self, param: Parameter, matrix: Tensor, group: Group, step: int) -> Tensor:
        """The direction of a step, as this rank holds the matrix; its states are updated.

        Args:
            param: the matrix.
            matrix: its gradient.
            group: the tensor parallel ranks of its kind.
            step: number of the update, from 1.

        Parallelism: collective over ``group``.
        """
        kept, shard = self._kept[id(param)], shard_of(param)
        gradient = _gathered(matrix, shard, group).astype(np.float64)
        before = _SoapState(*(_fp64(kept[name]) for name in SOAP_STATES))
        direction, after = soap_step(self.config, gradient, before, step)
        for name, values in zip(SOAP_STATES, after.arrays, strict=True):
            ops.copy_cast_(kept[name], _tensor(values))
        return _tensor(shard.local_slice(direction))

    def update(
        self, main: Tensor, part: Tensor, state: Mapping[str, Tensor], lr: float, scale: float
    ) -> None:
        """Take a step along a direction; see ``Muon.update``."""
        ops.axpy_(main, part, -lr)

    def scale_of(self, shape: tuple[int, ...], shard: ShardSpec) -> float:
        """Directions keep their length."""
        return 1.0


@dataclass(frozen=True, slots=True)
class _SoapState:
    """Of one matrix, in the order of ``SOAP_STATES``."""

    moment: Array
    """In the eigenbases, as the following one."""
    square: Array
    left: Array
    right: Array
    left_basis: Array
    right_basis: Array

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All of them."""
        return (
            *(self.moment, self.square, self.left, self.right),
            *(self.left_basis, self.right_basis),
        )


def soap_step(
    config: OptimizerConfig, gradient: Array, state: _SoapState, step: int
) -> tuple[Array, _SoapState]:
    """Direction [m, n] and new state of a matrix; the old one is not changed."""
    p, q = state.left_basis, state.right_basis
    if step == 1:
        p, q = np.eye(len(state.left)), np.eye(len(state.right))
    left, right = _preconditioners(config, gradient, state, (p, q), step)
    moment, square = state.moment, state.square
    if (step - 1) % config.soap_precondition_frequency == 0:
        moment = p @ moment @ q.T
        if step == 1:
            p, q = _eigenbasis(left), _eigenbasis(right)
        else:
            (p, rows), (q, columns) = _refined(left, p), _refined(right, q)
            square = square[rows][:, columns]
        moment = p.T @ moment @ q
    projected = p.T @ gradient @ q
    beta1, beta2 = config.betas
    moment = beta1 * moment + (1.0 - beta1) * projected
    square = beta2 * square + (1.0 - beta2) * projected**2
    root = np.sqrt(square / (1.0 - beta2**step)) + config.soap_eps
    direction = p @ (moment / (1.0 - beta1**step) / root) @ q.T
    return direction, _SoapState(moment, square, left, right, p, q)


def _preconditioners(
    config: OptimizerConfig,
    gradient: Array,
    state: _SoapState,
    bases: tuple[Array, Array],
    step: int,
) -> tuple[Array, Array]:
    """A and B with this gradient in them; averages begin unbiased."""
    beta = config.soap_shampoo_beta
    share = (1.0 - beta) / (1.0 - beta**step)
    weighed = [gradient.T, gradient]
    if config.soap_use_kl_shampoo:  # G B^-1 G^T / n and G^T A^-1 G / m
        weighed = []
        for old, basis, mine in zip(
            (state.right, state.left), reversed(bases), (gradient.T, gradient), strict=True
        ):
            values = np.maximum(_eigenvalues(old, basis), config.soap_eps)
            weighed.append((basis / (values * len(old))) @ (basis.T @ mine))
    left = state.left + share * (gradient @ weighed[0] - state.left)
    right = state.right + share * (gradient.T @ weighed[1] - state.right)
    return left, right


def _eigenvalues(matrix: Array, basis: Array) -> Array:
    """Eigenvalues, as far as the columns are eigenvectors; 0 where they are rounding errors."""
    values = ((matrix @ basis) * basis).sum(0)
    return np.where(values > NOISE * values.max(), values, 0.0)


def _eigenbasis(matrix: Array) -> Array:
    """Eigenvectors.

    A matrix of few gradients has directions without any, whose eigenvectors would be rounding
    errors, other ones in each layout: there those of a fixed matrix are taken.
    """
    values, vectors = np.linalg.eigh(matrix)
    basis = vectors[:, ::-1].copy()
    known = int((values > NOISE * values[-1]).sum())
    outside = np.eye(len(matrix)) - basis[:, :known] @ basis[:, :known].T
    fixed = np.linspace(1.0, 2.0, len(matrix))
    basis[:, known:] = np.linalg.eigh((outside * fixed) @ outside)[1][:, known:][:, ::-1]
    return basis


def _refined(matrix: Array, basis: Array) -> tuple[Array, Array]:
    """One step of orthogonal iteration, and the order that columns were put in before it."""
    values = _eigenvalues(matrix, basis)
    order = np.argsort(-values, kind="stable")
    sorted_basis = basis[:, order]
    moved = np.where(values[order] > 0.0, matrix @ sorted_basis, sorted_basis)
    return np.linalg.qr(moved)[0], order


def _gathered(matrix: Tensor, shard: ShardSpec, group: Group) -> Array:
    """The whole of a matrix that tensor parallel ranks hold parts of."""
    if shard.partition_dim < 0 or shard.partitions == 1:
        return memory.as_numpy(memory.contiguous(matrix))
    parts = memory.empty((group.size, *matrix.shape))
    comm.all_gather_into_tensor(parts, memory.contiguous(matrix), group)
    return shard.join(list(memory.as_numpy(parts)))


def _fp64(tensor: Tensor) -> Array:
    return memory.as_numpy(tensor).astype(np.float64)


def _tensor(values: Array) -> Tensor:
    return memory.from_numpy(np.ascontiguousarray(values, np.float32))
